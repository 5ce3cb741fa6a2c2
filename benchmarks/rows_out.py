"""The way out and the whole way: drain, whole, cpu, latency. Pointillist is the sink."""

import asyncio
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.child import Child
from benchmarks.events import event_templates, message_ids
from benchmarks.figures import Figure, Sample
from benchmarks.plan import Plan, measured, ours, url_of, wait_until_settled
from benchmarks.rows_in import BATCH_SIZE, BATCHES_AHEAD, CALLERS, latency_figures
from service.clock import SystemClock
from service.outbox.base import Entry
from service.outbox.capacity import Bounds
from service.outbox.sqlite.outbox import SqliteOutbox

LANES = 64  # POSTs in flight: the most for ours, which finds its number by itself, and always for the bare loop
LATENCY_RATE = 100.0  # events a second; otherwise all is idle
REST_TIME = 2.0  # seconds for relay workers to start
FILL_SIZE = 5_000  # events put at once when an outbox is filled


def fill(path: Path, count: int, *, window_ids: int = 10_000_000) -> None:
    """Make an outbox in which so many events wait, or so many more."""

    async def put_all() -> None:
        clock = SystemClock()
        outbox = SqliteOutbox(
            path, clock=clock, window=86_400.0, window_ids=window_ids, retry_max_delay=300.0, bounds=Bounds()
        )
        templates, ids, now = event_templates(), message_ids(f"{time.time_ns():x}-"), round(clock.wall() * 1000)
        try:
            for start in range(0, count, FILL_SIZE):
                chosen = [next(ids) for _ in range(min(FILL_SIZE, count - start))]
                await outbox.put(
                    [
                        Entry(message_id, templates[index % len(templates)].with_id(message_id), now)
                        for index, message_id in enumerate(chosen)
                    ]
                )
        finally:
            await outbox.close()

    asyncio.run(put_all())


def drain(plan: Plan) -> list[Figure]:
    """Waiting events drained to the sink, beside a bare loop that POSTs the same bodies."""
    count = plan.count(50_000, 200)
    mine, theirs = [], []
    with plan.new_folder() as folder, Child("sink") as sink, Child("bare") as bare:
        full = folder / "full.db"
        fill(full, count)
        bare_posts(bare, sink, "w-", plan.count(2_000, 50))
        for index in range(plan.rounds):
            outbox = folder / f"{index}.db"
            copy(full, outbox)
            sink.ask(do="reset", gate="closed", keys=False)
            with ours(outbox, url_of(sink), max_concurrency=str(LANES)) as server:
                mine.append(measured(server, count, lambda: drained(sink, outbox, count)))  # noqa: B023  it is called at once
            theirs.append(bare_posts(bare, sink, f"{index}-", count))
    return [Figure("drain", f"{count:,} waiting", "events/s", mine, theirs, "bare pyreqwest", "ceiling 0.40x")]


def workers(plan: Plan) -> list[Figure]:
    """The same drain with two relay workers, beside none."""
    count = plan.count(50_000, 200)
    samples: dict[str, list[Sample]] = {"2": [], "0": []}
    with plan.new_folder() as folder, Child("sink") as sink:
        full = folder / "full.db"
        fill(full, count)
        for index in range(plan.rounds):
            for number, taken in samples.items():
                outbox = folder / f"{index}-{number}.db"
                copy(full, outbox)
                sink.ask(do="reset", gate="closed", keys=False)
                with ours(outbox, url_of(sink), relay_workers=number) as server:
                    sink.ask(do="wait", count=1)  # a worker is up, and held by the gate
                    time.sleep(0.1 if plan.is_short else REST_TIME)  # so that the other one's start is not counted
                    taken.append(measured(server, count, lambda: drained(sink, outbox, count)))  # noqa: B023
                outbox.unlink()
    two, none = samples["2"], samples["0"]
    return [
        Figure("workers", f"{count:,} waiting, 2 relay workers", "events/s", two, none, "none"),
        Figure("workers", "CPU an event", "µs", _cpu(two), _cpu(none), "none", "<= 1.25x"),
    ]


def copy(source: Path, target: Path) -> None:
    """Copy a file onto the disk itself, so that no write of it is left to meet the fsyncs that are measured."""
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def drained(sink: Child, outbox: Path, count: int) -> float:
    """Open the sink's gate; returns the seconds until the last event came, once all are settled."""
    opened = sink.ask(do="open")["at"]
    last = sink.ask(do="wait", count=count)["last"]
    wait_until_settled(outbox)
    return float(last - opened)


def bare_posts(bare: Child, sink: Child, run: str, count: int) -> Sample:
    """Have the bare loop POST so many bodies."""
    sink.ask(do="reset", gate="open", keys=False)
    answer = bare.ask(do="post", url=url_of(sink), run=run, count=count, lanes=LANES)
    return Sample(count / answer["seconds"], answer["cpu"] / count * 1e6, bare.peak_memory())


def whole_way(load: Child, server: Child, sink: Child, outbox: Path, *, run: str, batches: int) -> Sample:
    """Send batches and wait until the last event has arrived at the sink; CPU is counted until all is settled."""
    events = batches * BATCH_SIZE
    sink.ask(do="reset", gate="open", keys=False)

    def send() -> float:
        port = server.ready["port"]
        load.tell(do="stream", port=port, run=run, batches=batches, size=BATCH_SIZE, ahead=BATCHES_AHEAD)
        last = sink.ask(do="wait", count=events)["last"]
        started = load.answer()["started"]
        wait_until_settled(outbox)
        return float(last - started)

    return measured(server, events, send)


def whole(plan: Plan) -> list[Figure]:
    """BatchSend to delivered, beside the naive forwarder."""
    count, few, warm_up = plan.count(200, 2), plan.count(2_000, 64), plan.count(10, 1)
    mine, theirs = [], []
    with plan.new_folder() as folder, Child("sink") as sink, Child("load") as load:
        outbox = folder / "outbox.db"
        with ours(outbox, url_of(sink)) as server, Child("rivals", "naive", url_of(sink)) as rival:

            def forward(run: str, events: int) -> float:
                port = rival.ready["port"]
                return float(load.ask(do="unary", port=port, run=run, count=events, callers=CALLERS)["seconds"])

            whole_way(load, server, sink, outbox, run="w-", batches=warm_up)
            forward("wn-", warm_up * CALLERS)
            for index in range(plan.rounds):
                mine.append(whole_way(load, server, sink, outbox, run=f"{index}-", batches=count))
                theirs.append(measured(rival, few, lambda: forward(f"n{index}-", few)))  # noqa: B023  it is called at once
    return [Figure("whole", "caller to sink", "events/s", mine, theirs, "naive forwarder")]


def cpu(plan: Plan) -> list[Figure]:
    """CPU an event from BatchSend to settled, beside the bare loop's."""
    count, warm_up = plan.count(200, 2), plan.count(10, 1)
    mine, theirs = [], []
    with plan.new_folder() as folder, Child("sink") as sink, Child("load") as load, Child("bare") as bare:
        outbox = folder / "outbox.db"
        with ours(outbox, url_of(sink)) as server:
            whole_way(load, server, sink, outbox, run="w-", batches=warm_up)
            bare_posts(bare, sink, "w-", warm_up * BATCH_SIZE)
            for index in range(plan.rounds):
                mine.append(whole_way(load, server, sink, outbox, run=f"{index}-", batches=count))
                theirs.append(bare_posts(bare, sink, f"{index}-", count * BATCH_SIZE))
    return [
        Figure("cpu", "CPU an event, caller to settled", "µs", _cpu(mine), _cpu(theirs), "bare pyreqwest", "floor 3.3x")
    ]


def _cpu(samples: Iterable[Sample]) -> list[Sample]:
    return [Sample(sample.cpu or 0.0, sample.cpu, sample.memory) for sample in samples]


def latency(plan: Plan) -> list[Figure]:
    """From the caller's send to the sink, beside one fsync, one empty call and one bare POST, each measured alone."""
    count = plan.count(500, 20)
    at = [index / LATENCY_RATE for index in range(count)]
    mine, theirs = [], []
    with (
        plan.new_folder() as folder,
        Child("sink") as sink,
        Child("load") as load,
        Child("bare") as bare,
        ours(folder / "outbox.db", url_of(sink)) as server,
        Child("rivals", "empty") as empty,
    ):

        def ours_alone(run: str) -> list[float]:
            sink.ask(do="reset", gate="open", keys=True)
            sent = load.ask(do="paced", port=server.ready["port"], run=run, at=at)["sent"]
            sink.ask(do="wait", count=count)
            arrived = sink.ask(do="arrivals")["arrivals"]
            return [arrived[message_id] - sent_at for message_id, sent_at in sent.items()]

        def parts_alone(run: str) -> list[float]:
            sink.ask(do="reset", gate="open", keys=False)
            fsyncs = bare.ask(do="paced_fsync", path=str(folder / "file"), at=at)["latencies"]
            calls = load.ask(do="paced", port=empty.ready["port"], run=run, at=at)["latencies"]
            posts = bare.ask(do="paced_post", url=url_of(sink), run=run, at=at)["latencies"]
            return [sum(parts) for parts in zip(fsyncs, calls, posts, strict=True)]

        ours_alone("w-")
        parts_alone("w-")
        for index in range(plan.rounds):
            mine.append(ours_alone(f"{index}-"))
            theirs.append(parts_alone(f"{index}-"))
    what, rival = f"caller to sink, at {LATENCY_RATE:g}/s", "fsync + empty call + POST"
    return latency_figures(
        row="latency", what=what, mine=mine, theirs=theirs, rival=rival, bounds={50: "<= 2x", 99: "<= 3x"}
    )
