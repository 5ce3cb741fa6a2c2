"""What a large outbox costs: backlog and window. Both fill files of gigabytes and run only when they are named."""

import contextlib
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.child import Child
from benchmarks.figures import Figure, Sample
from benchmarks.plan import Plan, measured, nobody, ours, url_of
from benchmarks.rows_in import BATCH_SIZE, stream, streamed
from benchmarks.rows_out import fill
from service.outbox.sqlite.opening import open_database

REST_TIME = 2.0  # seconds after the start at which memory is read
DRAIN_SHARE = 0.05  # share of the backlog that is drained to see what memory that takes


def backlog(plan: Plan) -> list[Figure]:
    """Start and memory with a million waiting events, beside none."""
    count = plan.count(1_000_000, 2_000)
    starts: dict[bool, list[Sample]] = {True: [], False: []}  # by whether anything waits
    memories: dict[bool, list[Sample]] = {True: [], False: []}
    with plan.new_folder() as folder, nobody() as url, Child("sink") as sink:
        full, empty = folder / "full.db", folder / "empty.db"
        fill(full, count)
        fill(empty, 0)
        for _ in range(plan.rounds):
            for is_full in (True, False):
                with ours(full if is_full else empty, url) as server:
                    starts[is_full].append(Sample(_until_serving(server)))
                    time.sleep(0.1 if plan.is_short else REST_TIME)
                    memories[is_full].append(Sample(server.memory()))
        with ours(full, url_of(sink)) as server:
            sink.ask(do="wait", count=round(count * DRAIN_SHARE))
            draining = [Sample(server.peak_memory())]
        with ours(empty, url_of(sink)) as server:
            resting = [Sample(server.peak_memory())]
    waiting, more = f"with {count:,} waiting", "<= +32 MiB"
    return [
        Figure("backlog", f"memory {waiting}", "MiB", memories[True], memories[False], "none", more, "difference"),
        Figure("backlog", f"most memory, draining {waiting}", "MiB", draining, resting, "at rest", "", "difference"),
        Figure("backlog", f"start to SERVING {waiting}", "s", starts[True], bound="<= 1.5 s", compare="alone"),
        Figure("backlog", "start to SERVING, empty", "s", starts[False], bound="<= 1 s", compare="alone"),
    ]


def _until_serving(server: Child) -> float:
    """Seconds from the process's start to an answer that says SERVING."""
    with grpc.insecure_channel(f"127.0.0.1:{server.ready['port']}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # its stubs know it only as async
        answer = check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise RuntimeError("the service runs and is not SERVING")
    return time.monotonic() - server.started_at


def window(plan: Plan) -> list[Figure]:
    """Accepting with ids in the duplicate window, beside an empty window."""
    count, warm_up = plan.count(400, 4), plan.count(50, 1)
    sizes = (plan.count(1_000_000, 1_000), plan.count(10_000_000, 10_000))
    figures: list[Figure] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(plan.new_folder())
        url = stack.enter_context(nobody())
        load = stack.enter_context(Child("load"))
        servers: dict[int, Child] = {}
        for size in (0, *sizes):
            outbox = folder / f"{size}.db"
            fill_window(outbox, size)
            servers[size] = stack.enter_context(ours(outbox, url))
            stream(load, servers[size], "w-", warm_up)
        samples: dict[int, list[Sample]] = {size: [] for size in servers}
        for index in range(plan.rounds):
            for size, server in servers.items():
                samples[size].append(streamed(load, server, f"{index}-", count))
        for size in sizes:
            what = f"BatchSend with {size:,} ids in the window"
            figures.append(Figure("window", what, "events/s", samples[size], samples[0], "empty window"))
            disk = [Sample((folder / f"{n}.db").stat().st_size / 2**20) for n in (size, 0)]
            figures.append(
                Figure("window", f"file with {size:,} ids", "MiB", disk[:1], disk[1:], "empty window", "", "difference")
            )
    return figures


def growth(plan: Plan) -> list[Figure]:
    """CPU an event, in and out, as the backlog grows, with a duplicate window that forgets an id for each new one."""
    sizes = [
        plan.count(size, short) for size, short in ((1_000, 10), (100_000, 100), (1_000_000, 200), (3_000_000, 400))
    ]
    ids, batches = plan.count(1_000_000, 1_000), plan.count(200, 1)
    events = batches * BATCH_SIZE
    ways: dict[str, dict[int, list[Sample]]] = {"in": {}, "out": {}}
    with plan.new_folder() as folder, nobody() as url, Child("sink") as sink, Child("load") as load:
        outbox = folder / "outbox.db"
        fill_window(outbox, ids)
        waiting = 0
        for size in sizes:
            fill(outbox, size - waiting, window_ids=ids)
            for index in range(plan.rounds):
                run = f"{size}-{index}-"
                with ours(outbox, url, duplicate_ids=str(ids)) as server:
                    stream(load, server, f"w{run}", 1)
                    taken = streamed(load, server, run, batches)
                sink.ask(do="reset", gate="closed", keys=False)
                with ours(outbox, url_of(sink), duplicate_ids=str(ids), max_concurrency="64") as server:
                    sink.ask(do="wait", count=1)
                    sent = measured(server, events, lambda: _drained_until(sink, events))
                ways["in"].setdefault(size, []).append(Sample(taken.cpu or 0.0))
                ways["out"].setdefault(size, []).append(Sample(sent.cpu or 0.0))
            waiting = size + plan.rounds * BATCH_SIZE  # the warm-up of each round stays, and a few of the rest
    least = sizes[0]
    return [
        Figure(
            "growth", f"CPU an event {way}, {size:,} waiting", "µs", at[size], at[least], f"{least:,}", "0.8 to 1.25x"
        )
        for way, at in ways.items()
        for size in sizes[1:]
    ]


def _drained_until(sink: Child, count: int) -> float:
    """Open the sink's gate until so many events have come; returns the seconds that took."""
    opened = sink.ask(do="open")["at"]
    return float(sink.ask(do="wait", count=count)["last"] - opened)


def fill_window(path: Path, count: int) -> None:
    """Make an outbox whose duplicate window holds so many ids, in an order as random as hashes are."""
    connection, log = open_database(path)
    with contextlib.closing(log), contextlib.closing(connection):
        connection.execute("PRAGMA cache_size = -2000000")  # kB: random writes, all of them in memory
        connection.execute("PRAGMA synchronous = OFF")  # nothing here is to survive anything
        connection.executescript(
            "BEGIN;"
            "INSERT INTO seen (id, digest, at)"
            f" WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n LIMIT {count:d})"
            f" SELECT id, randomblob(16), {round(time.time() * 1000):d} FROM n WHERE {count:d} > 0;"
            f"UPDATE counter SET seen = {count:d};"
            "COMMIT;"
        )
