"""A flow by itself, with its time, and every state that it went through."""

import itertools

from service.pointillist.answer import Answer, Failure
from service.relay.flow import Cause, Flow, Sent, State
from service.relay.outage import FEW
from service.relay.retry import Verdict, decide

CEILING = 64
JITTER = 0.5  # every draw of chance
LATENCY = 0.05  # seconds
MANY = 10**6  # events that may be sent


class Bench:
    """A flow, its time, and every state it went through."""

    def __init__(self, ceiling: int = CEILING, *, has_passed: bool = True) -> None:
        self.now = 1000.0
        self.changes: list[tuple[State, Cause | None]] = []
        self.flow = Flow(
            ceiling,
            lambda: JITTER,
            lambda flow: self.changes.append((flow.state, flow.cause)),
            has_passed=has_passed,
        )
        self._events = itertools.count(1)

    def send(self, *, is_repeat: bool = False, is_newest: bool = False) -> Sent:
        """Let a POST leave."""
        return self.flow.sent(self.now, is_repeat=is_repeat, is_newest=is_newest)

    def answer(
        self,
        status: int | Failure,
        sent: Sent | None = None,
        *,
        event: int = 0,
        is_repeat: bool = False,
        waiting: int = MANY,
        retry_after: float = 0.0,
    ) -> Verdict:
        """Answer a POST, which leaves a moment earlier unless it left before; returns the verdict of the flow."""
        if sent is None:
            sent = self.send(is_repeat=is_repeat)
            self.now += LATENCY
        answer = Answer(failure=status) if isinstance(status, Failure) else Answer(status)
        decision = decide(answer, 1, max_delay=300.0, random=lambda: JITTER)
        return self.flow.answered(
            sent,
            decision,
            event=event or next(self._events),
            now=self.now,
            waiting=lambda: waiting,
            retry_after=retry_after,
        )

    def wait_for_probe(self) -> float:
        """Let time pass until the next probe may go; returns the seconds."""
        opens_at = self.flow.opens_at(self.now)
        waited = max(0.0, (opens_at or self.now) - self.now)
        self.now += waited
        assert self.flow.limit(self.now) == self.flow.in_flight + 1
        return waited

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return self.flow.limit(self.now)


def probing(status: int | Failure = 401) -> Bench:
    """A flow that has seen nothing pass, and has stopped for it."""
    bench = Bench(has_passed=False)
    for _ in range(FEW):
        bench.answer(status)
    assert bench.flow.state is State.PROBING
    return bench
