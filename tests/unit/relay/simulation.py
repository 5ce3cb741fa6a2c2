"""A relay's flow and a simulated Pointillist, in virtual time: `python -m tests.unit.relay.simulation` runs the grid.

The store, the arrivals and Pointillist are simulated; every decision is that of service.relay.flow and retry.
"""

import heapq
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from service.outbox.base import Pick
from service.pointillist.answer import Answer
from service.relay.flow import Flow, Sent, State
from service.relay.retry import Verdict, decide
from tests.support.sizes import sized

CEILING = 256
RETRY_MAX_DELAY = 300.0  # seconds
WAITING = sized(20_000, 100_000)  # events that wait through an outage


@dataclass(slots=True)
class Event:
    """One event, and what became of it."""

    id: int
    at: float
    is_bad: bool
    attempts: int = 0
    delivered_at: float | None = None


Respond = Callable[["Simulation", Event, float], tuple[float, Answer]]
"""The seconds until the answer to an event that is sent at a moment, and the answer."""


@dataclass
class Simulation:
    """One relay, one store and one Pointillist."""

    respond: Respond
    arrivals: Iterable[Event]
    chance: random.Random
    ceiling: int = CEILING
    has_passed: bool = True
    now: float = 0.0
    posts: list[tuple[float, bool]] = field(default_factory=list)
    """When each was sent, and whether its event was tried before."""
    changes: list[tuple[float, State, str]] = field(default_factory=list)
    last_2xx_at: float = 0.0

    def __post_init__(self) -> None:
        self.fresh: deque[Event] = deque()
        self.due: list[tuple[float, int, Event]] = []
        self.events: list[Event] = []
        self.numbers = itertools.count()
        self.heap: list[tuple[float, int, Event, Sent, Answer]] = []
        self.repeats_out = 0
        self.is_newest = False
        self.waiting = 0
        self.flow = Flow(
            self.ceiling,
            self.chance.random,
            lambda flow: self.changes.append((self.now, flow.state, str(flow.cause))),
            has_passed=self.has_passed,
        )

    def run(self, until: float) -> "Simulation":
        """Let virtual time pass."""
        arrivals = iter(self.arrivals)
        coming = next(arrivals, None)
        while True:
            times = [until]
            if coming is not None:
                times.append(coming.at)
            if self.heap:
                times.append(self.heap[0][0])
            opens_at = self.flow.opens_at(self.now)
            if opens_at is not None:
                times.append(opens_at)
            elif self.due:
                due_at, repeats_at = self.due[0][0], self.flow.repeats_at(self.now)
                if due_at > self.now or repeats_at is not None:
                    times.append(max(due_at, repeats_at or 0.0))
            at = min(times)
            self.now = max(self.now + 1e-6, at) if at <= self.now else at
            if self.now >= until:
                self.now = until
                return self
            while coming is not None and coming.at <= self.now:
                self.fresh.append(coming)
                self.events.append(coming)
                self.waiting += 1
                coming = next(arrivals, None)
            while self.heap and self.heap[0][0] <= self.now:
                self._answer(*heapq.heappop(self.heap)[2:])
                self._send()
            self._send()

    def put_back(self, events: Iterable[Event]) -> None:
        """Hold events that an earlier process tried."""
        for event in events:
            heapq.heappush(self.due, (event.at, event.id, event))
            self.waiting += 1

    def _send(self) -> None:
        flow, now = self.flow, self.now
        while flow.in_flight < flow.limit(now):
            self.is_newest = False
            event = self._probe() if flow.state is State.PROBING else self._next()
            if event is None:
                return
            is_repeat = event.attempts > 0
            self.repeats_out += is_repeat
            self.posts.append((now, is_repeat))
            sent = flow.sent(now, is_repeat=is_repeat, is_newest=self.is_newest)
            seconds, answer = self.respond(self, event, now)
            heapq.heappush(self.heap, (now + seconds, next(self.numbers), event, sent, answer))

    def _next(self) -> Event | None:
        if (
            self.due
            and self.due[0][0] <= self.now
            and self.flow.repeats(self.now, self.repeats_out, others_wait=bool(self.fresh))
        ):
            self.flow.take_repeat()
            return heapq.heappop(self.due)[2]
        if not self.fresh:
            return None
        self.is_newest = self.flow.takes_newest(self.now)
        return self.fresh.pop() if self.is_newest else self.fresh.popleft()

    def _probe(self) -> Event | None:
        for pick in self.flow.picks():
            if pick is Pick.NEWEST and self.fresh:
                return self.fresh.pop()
            if pick is Pick.NEW and self.fresh:
                return self.fresh.popleft()
            if pick is Pick.TRIED and self.due:
                return heapq.heappop(self.due)[2]
        return None

    def _answer(self, event: Event, sent: Sent, answer: Answer) -> None:
        self.repeats_out -= event.attempts > 0
        decision = decide(answer, event.attempts + 1, max_delay=RETRY_MAX_DELAY, random=self.chance.random)
        verdict = self.flow.answered(
            sent,
            decision,
            event=event.id,
            now=self.now,
            waiting=lambda: self.waiting,
            retry_after=min(answer.retry_after or 0.0, RETRY_MAX_DELAY),
        )
        if verdict is Verdict.NAK:
            event.attempts += 1
            heapq.heappush(self.due, (self.now + decision.delay, event.id, event))
            return
        self.waiting -= 1
        if verdict is Verdict.ACK:
            event.delivered_at = self.last_2xx_at = self.now


# -- one class of events that fails, beside others that pass


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the grid."""

    share: float
    rate: float
    status: int
    good: float  # seconds
    bad: float  # seconds
    onset: float = 0.0  # seconds
    burst: int = 0  # bad events at the onset, at once
    has_passed: bool = True
    seconds: float = 600.0
    seed: int = 1

    def __str__(self) -> str:
        return (
            f"{self.share:.0%}-of-{self.rate:g}-{self.status}-good-{self.good:g}s-bad-{self.bad:g}s"
            f"-onset-{self.onset:g}-burst-{self.burst}{'' if self.has_passed else '-first'}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What must hold in a cell."""

    delivered: int
    possible: int
    late: float
    repeats_a_minute: int
    simulation: Simulation

    @property
    def is_good(self) -> bool:
        """All of it holds."""
        return self.delivered >= 0.9 * self.possible and self.late <= 60 and self.repeats_a_minute <= 75


def arrivals(cell: Cell, chance: random.Random) -> list[Event]:
    """Events at random, some of them bad from the onset on, and a burst of bad ones."""
    events: list[tuple[float, bool]] = []
    at = 0.0
    while True:
        at += chance.expovariate(cell.rate)
        if at >= cell.seconds:
            break
        events.append((at, at >= cell.onset and chance.random() < cell.share))
    events += [(cell.onset, True)] * cell.burst
    events.sort(key=lambda event: event[0])
    return [Event(number, at, is_bad) for number, (at, is_bad) in enumerate(events)]


def run(cell: Cell) -> Outcome:
    """Run a cell and compare it with a relay that knows all and never uses more than the ceiling."""
    chance = random.Random(cell.seed)
    events = arrivals(cell, chance)

    def respond(_: Simulation, event: Event, __: float) -> tuple[float, Answer]:
        seconds = (cell.bad if event.is_bad else cell.good) * chance.uniform(0.9, 1.1)
        return seconds, Answer(cell.status if event.is_bad else 200)

    simulation = Simulation(respond, events, chance, has_passed=cell.has_passed).run(cell.seconds)
    free = [0.0] * CEILING
    possible = delivered = 0
    late = 0.0
    for event in events:
        done = max(event.at, free[0]) + (cell.bad if event.is_bad else cell.good)
        heapq.heapreplace(free, done)
        if event.is_bad:
            continue
        possible += done <= cell.seconds
        delivered += event.delivered_at is not None
        if done <= cell.seconds - 60:
            late = max(late, (event.delivered_at or cell.seconds) - done)
    minutes: dict[int, int] = {}
    for at, is_repeat in simulation.posts:
        if is_repeat:
            minutes[int(at // 60)] = minutes.get(int(at // 60), 0) + 1
    return Outcome(delivered, possible, late, max(minutes.values(), default=0), simulation)


# -- a server with a knee


@dataclass(frozen=True, slots=True)
class Server:
    """A server whose latency is steady up to a knee, and rises steeply above it, where it also answers 503."""

    knee: float
    latency: float  # seconds
    is_rising: bool = True
    is_refusing: bool = True
    steady: float = 0.0
    """Share of 503 beside that."""

    def settled_limit(self, seed: int = 1, round_trips: int = 600) -> float:
        """Return the mean limit of the second half of a run in which there is always something to send."""
        chance = random.Random(seed)
        seconds = round_trips * self.latency
        samples: list[int] = []

        def respond(simulation: Simulation, _: Event, now: float) -> tuple[float, Answer]:
            excess = max(0.0, simulation.flow.in_flight / self.knee - 1)
            if now > seconds / 2:
                samples.append(simulation.flow.target)
            is_refused = (self.is_refusing and chance.random() < 2 * excess) or chance.random() < self.steady
            latency = self.latency * (1 + 5 * excess * self.is_rising) * chance.uniform(0.9, 1.1)
            return latency, Answer(503 if is_refused else 200)

        waiting = (
            Event(number, 0.0, is_bad=False)
            for number in range((round_trips + 200) * round(min(CEILING, 4 * self.knee)))
        )
        Simulation(respond, waiting, chance).run(seconds)
        return sum(samples) / len(samples)


# -- an outage


@dataclass(frozen=True, slots=True)
class Outage:
    """An outage, or a wrong token, with many events waiting."""

    begin: float
    end: float
    answer: Answer
    seconds: float
    """Until an answer, while it lasts."""
    has_passed: bool = True

    def run(self) -> "Seen":
        """Run it, and look back at it."""
        chance = random.Random(3)

        def respond(_: Simulation, __: Event, now: float) -> tuple[float, Answer]:
            is_out = self.begin <= now < self.end
            seconds = (self.seconds if is_out else 0.05) * chance.uniform(0.9, 1.1)
            return seconds, self.answer if is_out else Answer(200)

        events = [Event(number, 0.0, is_bad=False) for number in range(WAITING)]
        simulation = Simulation(respond, events, chance, has_passed=self.has_passed).run(self.end + 60)
        known = next(at for at, state, _ in simulation.changes if state is State.PROBING)
        times = [event.delivered_at for event in events if event.delivered_at is not None]
        last = max((at for at in times if at <= known), default=self.begin)
        posts = [at for at, _ in simulation.posts]
        minutes = range(int((self.end - known) // 60))
        return Seen(
            after=known - last,
            posts=sum(last < at <= known for at in posts),
            a_minute=[sum(known + 60 * n < at <= known + 60 * (n + 1) for at in posts) for n in minutes],
            back=min(at for at in times if at > known) - self.end,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """The course of an outage."""

    after: float
    """Seconds from the last 2xx until it was recognised."""
    posts: int
    """POSTs of that time."""
    a_minute: list[int]
    """POSTs of each minute after that."""
    back: float
    """Seconds from its end until the next 2xx."""


# -- the grid


def grid() -> list[Cell]:
    """Every cell."""
    cells = []
    for status, good, bad, onset in itertools.product((403, 500, 429), (0.005, 0.5), (0.0, 10.0), (0.0, 60.0)):
        slow = bad or good
        for share in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.65, 0.8, 0.9, 0.95):
            if status == 429 and share > 0.2:
                continue
            for rate in (1.0, 5.0, 50.0, 200.0):
                if rate < 5 and share > 0.8:
                    continue
                cell = Cell(share, rate, status, good, slow, onset, seconds=onset + (300 if rate > 50 else 600))
                cells.append(cell)
                if share <= 0.8 and onset == 0:
                    cells.append(replace(cell, has_passed=False))
        cells += [Cell(0.0, 50.0, status, good, slow, onset, burst) for burst in (20, 40, 200, 1000, 2000)]
    return cells


def main() -> int:
    """Print each cell that fails; returns how many."""
    failed = 0
    cells = grid()
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for cell in cells:
        if only not in str(cell):
            continue
        outcome = run(cell)
        if not outcome.is_good:
            failed += 1
            print(  # noqa: T201  the grid is run by hand
                f"{cell}: {outcome.delivered} of {outcome.possible}, {outcome.late:.0f} s late,"
                f" {outcome.repeats_a_minute} repeats, limit {outcome.simulation.flow.target},"
                f" {len(outcome.simulation.changes)} changes",
                flush=True,
            )
    print(f"{failed} of {len(cells)} cells fail")  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
