"""The way in: unary, batch, ok_latency. Pointillist is out meanwhile, so that the relay rests."""

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Self

from benchmarks import h2load
from benchmarks.child import Child
from benchmarks.figures import Figure, Sample, percentile
from benchmarks.h2load import Load
from benchmarks.load import Access
from benchmarks.plan import Plan, check_accepted, measured, nobody, ours

CALLERS = 64
BATCH_SIZE = 100  # events a message
BATCHES_AHEAD = 8  # messages that the caller leaves unanswered


class UnaryLoad:
    """Makes unary calls with h2load where it is installed, else with the Python client."""

    def __init__(self) -> None:
        self._client = None if h2load.is_there() else Child("load")
        self._runs = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.stop()

    def flat_out(self, server: Child, count: int, access: Access | None = None) -> Load:
        """Make so many calls, 64 at a time."""
        port = server.ready["port"]
        if self._client is None:
            return h2load.flat_out(port, count, CALLERS, access)
        answer = self._client.ask(do="unary", port=port, run=self._run(), count=count, callers=CALLERS, access=access)
        return Load(answer["seconds"], tuple(answer["latencies"]))

    def paced(self, server: Child, at: Sequence[float]) -> Load:
        """Make a call at each of these times."""
        port = server.ready["port"]
        if self._client is None:
            return h2load.paced(port, at)
        answer = self._client.ask(do="paced", port=port, run=self._run(), at=list(at))
        return Load(answer["seconds"], tuple(answer["latencies"]))

    def _run(self) -> str:
        return f"u{next(self._runs)}-"


def unary(plan: Plan) -> list[Figure]:
    """Track, fsynced, beside an empty handler."""
    count, warm_up = plan.count(20_000, 128), plan.count(2_000, 64)
    mine, theirs = [], []
    with plan.new_folder() as folder, nobody() as url, UnaryLoad() as load:
        outbox = folder / "outbox.db"
        with ours(outbox, url) as server, Child("rivals", "empty") as rival:

            def once(side: Child) -> Sample:
                return measured(side, count, lambda: load.flat_out(side, count).seconds)

            load.flat_out(server, warm_up)
            load.flat_out(rival, warm_up)
            for _ in range(plan.rounds):
                mine.append(once(server))
                theirs.append(once(rival))
            check_accepted(outbox, warm_up + plan.rounds * count)
    return [Figure("unary", f"Track, {CALLERS} callers", "events/s", mine, theirs, "empty handler")]


def batch(plan: Plan) -> list[Figure]:
    """BatchSend, fsynced, beside a handler that only parses."""
    count, warm_up = plan.count(400, 4), plan.count(50, 2)
    mine, theirs = [], []
    with plan.new_folder() as folder, nobody() as url, Child("load") as load:
        outbox = folder / "outbox.db"
        with ours(outbox, url) as server, Child("rivals", "decode") as rival:
            stream(load, server, "w-", warm_up)
            stream(load, rival, "w-", warm_up)
            for index in range(plan.rounds):
                mine.append(streamed(load, server, f"{index}-", count))
                theirs.append(streamed(load, rival, f"{index}-", count))
            check_accepted(outbox, (warm_up + plan.rounds * count) * BATCH_SIZE)
    return [
        Figure("batch", f"BatchSend, {BATCH_SIZE} a message", "events/s", mine, theirs, "parses only", "ceiling 0.25x")
    ]


def stream(load: Child, server: Child, run: str, count: int, access: Access | None = None) -> float:
    """Send so many batches on one stream; returns the seconds until the last answer."""
    port = server.ready["port"]
    answer = load.ask(
        do="stream", port=port, run=run, batches=count, size=BATCH_SIZE, ahead=BATCHES_AHEAD, access=access
    )
    return float(answer["seconds"])


def streamed(load: Child, server: Child, run: str, count: int, access: Access | None = None) -> Sample:
    """Measure what `stream` does."""
    return measured(server, count * BATCH_SIZE, lambda: stream(load, server, run, count, access))


def ok_latency(plan: Plan) -> list[Figure]:
    """How long an OK takes at half of our maximum rate, beside the empty handler at that same rate."""
    count, warm_up, seconds = plan.count(10_000, 128), plan.count(2_000, 64), 0.3 if plan.is_short else 4.0
    mine, theirs = [], []
    sent, reached = warm_up + count, []
    with plan.new_folder() as folder, nobody() as url, UnaryLoad() as load:
        outbox = folder / "outbox.db"
        with ours(outbox, url) as server, Child("rivals", "empty") as rival:
            load.flat_out(server, warm_up)
            load.flat_out(rival, warm_up)
            rate = count / load.flat_out(server, count).seconds / 2
            for index in range(plan.rounds):
                at = poisson(rate, seconds, seed=index)
                loads = load.paced(server, at), load.paced(rival, at)
                mine.append(loads[0].latencies)
                theirs.append(loads[1].latencies)
                reached += [len(at) / paced.seconds for paced in loads]
                sent += len(at)
            check_accepted(outbox, sent)
    what = f"of an OK, {statistics.median(reached):,.0f}/s of {2 * rate:,.0f}/s"
    return latency_figures(
        row="ok_latency", what=what, mine=mine, theirs=theirs, rival="empty handler", bounds={50: "", 99: ""}
    )


def latency_figures(
    *,
    row: str,
    what: str,
    mine: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    rival: str,
    bounds: dict[int, str],
) -> list[Figure]:
    """Percentiles of the latencies of each round.

    Args:
        row: the row's name.
        what: what took so long.
        mine: seconds, a sequence a round.
        theirs: the same of the rival.
        rival: what `theirs` are of.
        bounds: the percentiles that are asked for, and their bounds.
    """

    def at(percent: int, rounds: Sequence[Sequence[float]]) -> list[Sample]:
        return [Sample(percentile(latencies, percent) * 1e3) for latencies in rounds]

    return [
        Figure(row, f"p{percent} {what}", "ms", at(percent, mine), at(percent, theirs), rival, bound)
        for percent, bound in bounds.items()
    ]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of arrivals that know nothing of each other, as callers do; the same for the same seed."""
    chance = random.Random(seed)
    at, times = chance.expovariate(rate), []
    while at < seconds:
        times.append(at)
        at += chance.expovariate(rate)
    return times
