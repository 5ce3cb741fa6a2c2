"""The outbox on NATS JetStream: nats_unary, nats_batch, nats_drain, nats_sync.

A nats-server is started for each row. Replicas have one role here, as they have where there are many: what accepts does
not relay.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from benchmarks.child import Child
from benchmarks.figures import Figure, Sample
from benchmarks.nats import DEFAULT_SYNC, LOOK_INTERVAL, Nats, running_nats
from benchmarks.plan import SETTLE_TIME, Plan, measured, nobody, ours, url_of
from benchmarks.rivals import PUBLISHED
from benchmarks.rows_in import BATCH_SIZE, CALLERS, UnaryLoad, latency_figures, poisson, stream
from benchmarks.rows_out import LANES, bare_posts
from service.config.role import Role

EVENTS = "POINTILLIST_EVENTS"  # the stream that the service makes
PACE = 100.0  # calls a second, at which a call meets no other
RIVAL = "publishes only"
BOUND = ">= 0.75x"


def nats_unary(plan: Plan) -> list[Figure]:
    """Track, acknowledged by JetStream, beside a handler that only publishes."""
    count, warm_up = plan.count(20_000, 128), plan.count(2_000, 64)
    with UnaryLoad() as load, _both(plan) as sides:

        def run(side: Child, _: str, calls: int) -> float:
            return load.flat_out(side, calls).seconds

        what = f"Track, {CALLERS} callers"
        return _rounds(plan, sides, run, row="nats_unary", what=what, count=count, warm_up=warm_up)


def nats_batch(plan: Plan) -> list[Figure]:
    """BatchSend, acknowledged by JetStream, beside a handler that only publishes."""
    count, warm_up = plan.count(40_000, 400), plan.count(5_000, 200)
    with Child("load") as load, _both(plan) as sides:

        def run(side: Child, name: str, events: int) -> float:
            return stream(load, side, name, events // BATCH_SIZE)

        what = f"BatchSend, {BATCH_SIZE} a message"
        return _rounds(plan, sides, run, row="nats_batch", what=what, count=count, warm_up=warm_up)


class _Sides:
    """Ours and the rival, each with a stream of its own on one nats-server."""

    def __init__(self, nats: Nats, server: Child, rival: Child) -> None:
        self.nats = nats
        self.streams = {server: EVENTS, rival: PUBLISHED}

    def __iter__(self) -> Iterator[Child]:
        return iter(self.streams)


@contextlib.contextmanager
def _both(plan: Plan) -> Iterator[_Sides]:
    """A nats-server, with ours and the rival beside it."""
    with (
        plan.new_folder() as folder,
        running_nats(folder) as nats,
        nobody() as url,
        ours(nats.url, url, Role.ACCEPT) as server,
        Child("rivals", "publish", nats.url) as rival,
    ):
        yield _Sides(nats, server, rival)


def _rounds(
    plan: Plan, sides: _Sides, run: Callable[[Child, str, int], float], *, row: str, what: str, count: int, warm_up: int
) -> list[Figure]:
    """Run both sides in turns.

    Args:
        plan: says how often.
        sides: ours and the rival.
        run: has a side take so many events, in a run of that name, and returns the seconds it took.
        row: the row's name.
        what: what is done.
        count: events of a round.
        warm_up: events before the first round.
    """
    samples: dict[Child, list[Sample]] = {side: [] for side in sides}
    nats_samples: dict[Child, list[Sample]] = {side: [] for side in sides}
    for side in sides:
        run(side, "w-", warm_up)
    for index in range(plan.rounds):
        for side in sides:
            sample, nats_sample = _sample(sides.nats, side, count, lambda: run(side, f"{index}-", count))  # noqa: B023  it is called at once
            samples[side].append(sample)
            nats_samples[side].append(nats_sample)
    for name in sides.streams.values():
        check_stored(sides.nats, name, warm_up + plan.rounds * count)
    (mine, theirs), (nats_mine, nats_theirs) = samples.values(), nats_samples.values()
    return [
        Figure(row, what, "events/s", mine, theirs, RIVAL, BOUND),
        Figure(row, "CPU of nats-server an event", "µs", nats_mine, nats_theirs, RIVAL),
    ]


def _sample(nats: Nats, side: Child, events: int, run: Callable[[], float]) -> tuple[Sample, Sample]:
    """Measure a side, and what nats-server spent on an event meanwhile."""
    before = nats.cpu()
    sample = measured(side, events, run)
    cpu = (nats.cpu() - before) / events * 1e6
    return sample, Sample(cpu, cpu)


def check_stored(nats: Nats, stream_name: str, events: int) -> None:
    """Make sure that every event that was sent is in the stream, whatever the load generator saw."""
    if (stored := nats.ever_stored(stream_name)) != events:
        raise RuntimeError(f"{events} events were sent and {stored} stored in {stream_name}; the figures mean nothing")


def nats_drain(plan: Plan) -> list[Figure]:
    """Events that wait in the stream drained to the sink, beside a bare loop that POSTs the same bodies."""
    count = plan.count(30_000, 200)
    mine, nats_samples, theirs = [], [], []
    with (
        plan.new_folder() as folder,
        running_nats(folder) as nats,
        Child("sink") as sink,
        Child("bare") as bare,
        Child("load") as load,
        nobody() as url,
        ours(nats.url, url, Role.ACCEPT) as accepting,
    ):
        bare_posts(bare, sink, "w-", plan.count(2_000, 50))
        for index in range(plan.rounds):
            stream(load, accepting, f"{index}-", count // BATCH_SIZE)
            sink.ask(do="reset", gate="closed", keys=False)
            with ours(nats.url, url_of(sink), Role.RELAY, max_concurrency=str(LANES)) as relaying:
                sample, nats_sample = _sample(nats, relaying, count, lambda: _drained(sink, nats, count))
            mine.append(sample)
            nats_samples.append(nats_sample)
            theirs.append(bare_posts(bare, sink, f"{index}-", count))
    return [
        Figure("nats_drain", f"{count:,} waiting", "events/s", mine, theirs, "bare pyreqwest"),
        Figure("nats_drain", "CPU of nats-server an event", "µs", nats_samples, compare="alone"),
    ]


def _drained(sink: Child, nats: Nats, count: int) -> float:
    """Open the sink's gate; returns the seconds until the last event came, once all are settled."""
    opened = sink.ask(do="open")["at"]
    last = sink.ask(do="wait", count=count)["last"]
    deadline = time.monotonic() + SETTLE_TIME
    while waiting := nats.waiting(EVENTS):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{waiting} events still wait in {EVENTS} after {SETTLE_TIME:g} s")
        time.sleep(LOOK_INTERVAL)
    return float(last - opened)


def nats_sync(plan: Plan) -> list[Figure]:
    """What it costs that JetStream has the disk write each event before it acknowledges, beside its default."""
    calls, events, warm_up = plan.count(5_000, 128), plan.count(10_000, 200), plan.count(500, 64)
    seconds = 0.3 if plan.is_short else 4.0
    latencies: dict[str, list[tuple[float, ...]]] = {"always": [], DEFAULT_SYNC: []}
    unary: dict[str, list[Sample]] = {"always": [], DEFAULT_SYNC: []}
    batch: dict[str, list[Sample]] = {"always": [], DEFAULT_SYNC: []}
    with contextlib.ExitStack() as stack:
        unary_load = stack.enter_context(UnaryLoad())
        batch_load = stack.enter_context(Child("load"))
        url = stack.enter_context(nobody())
        servers = {}
        for sync_interval in latencies:
            nats = stack.enter_context(running_nats(stack.enter_context(plan.new_folder()), sync_interval))
            servers[sync_interval] = stack.enter_context(ours(nats.url, url, Role.ACCEPT))
            unary_load.flat_out(servers[sync_interval], warm_up)
        for index in range(plan.rounds):
            at = poisson(PACE, seconds, seed=index)
            for sync_interval, server in servers.items():
                latencies[sync_interval].append(unary_load.paced(server, at).latencies)
                unary[sync_interval].append(_unary(unary_load, server, calls))
                batch[sync_interval].append(_batch(batch_load, server, f"{index}-", events))
    rival = f"sync_interval: {DEFAULT_SYNC}"
    what = f"of an OK, {PACE:g}/s, sync_interval: always"
    return [
        *latency_figures(
            row="nats_sync",
            what=what,
            mine=latencies["always"],
            theirs=latencies[DEFAULT_SYNC],
            rival=rival,
            bounds={50: "", 99: ""},
        ),
        _compared(f"Track, {CALLERS} callers", unary, rival),
        _compared(f"BatchSend, {BATCH_SIZE} a message", batch, rival),
    ]


def _unary(load: UnaryLoad, server: Child, calls: int) -> Sample:
    return measured(server, calls, lambda: load.flat_out(server, calls).seconds)


def _batch(load: Child, server: Child, name: str, events: int) -> Sample:
    return measured(server, events, lambda: stream(load, server, name, events // BATCH_SIZE))


def _compared(what: str, samples: dict[str, list[Sample]], rival: str) -> Figure:
    return Figure("nats_sync", what, "events/s", samples["always"], samples[DEFAULT_SYNC], rival)
