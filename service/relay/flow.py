"""How much the relay may have in flight: one number, and the one state machine that moves it.

    flowing   n   adapts: grows while it is the limit and latency is steady, shrinks on 429, 5xx, timeouts and
                  rising latency (additive increase, multiplicative decrease)
    probing   1   at intervals, each time with another event, after Pointillist refused everything for a while or
                  said that the set-up is wrong; any 2xx makes it flow again
    paused    0   there is no room for dead letters

Pure: times are passed in, in seconds of one steady clock.
"""

from collections.abc import Callable
from enum import StrEnum

from service.relay.retry import RetryDecision, Verdict

START_LIMIT = 8  # events in flight at the start, before anything is known
GROWTH = 1.0  # added to the limit once a round trip
SHRINKAGE = 0.8  # the limit is multiplied by this, at most once a round trip
OVERLOAD_SHARE = 0.1  # share of a round's answers that must tell of overload; a lone failure is no overload
LATENCY_RISE = 1.2  # a round whose mean latency is above the baseline's by this factor ...
LATENCY_NOISE = 0.01  # ... and these seconds tells of overload
BASELINE_DRIFT = 0.02  # how fast the baseline follows a higher latency that stays, per round
MAX_FAILURES = 20  # failures in a row, with no 2xx between, that end flowing
FAILURES_TELLING = 5  # failures in a row after which the relay is not getting through
MAX_REFUSALS = 100  # refused events with no 2xx since the start that mean a wrong set-up
SLOW_DOWN_DELAY = 0.5  # seconds, the most that a 429 without Retry-After holds the whole relay
RECENT_ACK = 60.0  # seconds after a 2xx in which a set-up that seems wrong is probed at once
PROBE_DELAY = 0.5  # seconds before the second probe; doubles with each
MAX_PROBE_DELAY = 30.0  # seconds


class State(StrEnum):
    """What the relay is doing."""

    FLOWING = "flowing"
    PROBING = "probing"
    PAUSED = "paused"


class Cause(StrEnum):
    """Why the relay is not flowing."""

    SETUP = "setup"
    """Pointillist says that the token, the address or the account is wrong."""
    REFUSALS = "refusals"
    """Pointillist has refused a hundred events and taken none since the start: the set-up, too."""
    OUTAGE = "outage"
    """Nothing gets through for the moment."""
    DEAD_LETTERS_FULL = "dead_letters_full"
    """There is no room for another dead letter."""


class Flow:
    """The state machine.

    Args:
        ceiling: the most that may ever be in flight.
        random: uniform in [0, 1), for jitter.
        changed: called after every change of state.
    """

    def __init__(self, ceiling: int, random: Callable[[], float], changed: Callable[["Flow"], None]) -> None:
        self._ceiling = ceiling
        self._random = random
        self._changed = changed
        self.state = State.FLOWING
        self.cause: Cause | None = None
        """Why it is not flowing; None while it is."""
        self.answer = ""
        """The answer that ended the flowing, such as "401" or "timeout"."""
        self._limit = float(min(START_LIMIT, ceiling))
        self._slow_start_until = float(ceiling)
        self._held_until = float("-inf")
        self._probe_at = float("-inf")
        self._probes = 0
        self._probing_since = float("-inf")
        self._failures = 0
        self._acks = 0
        self._last_ack_at = float("-inf")
        self._refusals = 0
        self._baseline: float | None = None
        self._start_round(float("-inf"))

    # -- what the relay asks

    def limit(self, now: float) -> int:
        """How many may be in flight now."""
        if self.state is State.PAUSED or now < self._held_until:
            return 0
        if self.state is State.PROBING:
            return 1 if now >= self._probe_at else 0
        return int(self._limit)

    def opens_at(self, now: float) -> float | None:
        """When the limit rises by time alone; None where it does not."""
        at = max(self._held_until, self._probe_at if self.state is State.PROBING else float("-inf"))
        return at if self.state is not State.PAUSED and at > now else None

    @property
    def target(self) -> int:
        """The limit, whatever holds it back for a moment."""
        return {State.PAUSED: 0, State.PROBING: 1, State.FLOWING: int(self._limit)}[self.state]

    @property
    def is_getting_through(self) -> bool:
        """Whether Pointillist takes events, as far as the latest answers tell."""
        return self.state is State.FLOWING and self._failures < FAILURES_TELLING

    # -- what the relay tells

    def answered(
        self, decision: RetryDecision, *, sent_at: float, now: float, in_flight: int, retry_after: float = 0.0
    ) -> Verdict:
        """Take note of an answer; returns what is to be done with its event: ACK, NAK or TERM.

        Args:
            decision: what the answer means by itself.
            sent_at: when the event was sent.
            now: when the answer came.
            in_flight: how many were in flight then, this one included.
            retry_after: seconds that the answer asks to wait.
        """
        if decision.slow_down:
            self._held_until = max(self._held_until, now + (retry_after or SLOW_DOWN_DELAY * self._random()))
        match decision.verdict:
            case Verdict.ACK:
                self._acked(now)
                self._count(sent_at, now, in_flight, overload=False)
                return Verdict.ACK
            case Verdict.TERM:
                return self._refused(sent_at, now)
            case Verdict.SETUP:
                if self._last_ack_at < sent_at:  # else others pass, and it is this event that is refused
                    self._failed(decision.reason, sent_at, now, retry_after, most=1, cause=Cause.SETUP)
            case Verdict.NAK:
                self._count(sent_at, now, in_flight, overload=decision.overload, at_once=decision.slow_down)
                self._failed(decision.reason, sent_at, now, retry_after, most=MAX_FAILURES, cause=Cause.OUTAGE)
        return Verdict.NAK

    def pause(self, cause: Cause) -> None:
        """Send nothing until `unpause`."""
        if self.state is not State.PAUSED:
            self._change(State.PAUSED, cause)

    def unpause(self, now: float) -> None:
        """End a pause."""
        if self.state is State.PAUSED:
            self._resume(now)

    def probe_now(self) -> None:
        """Something was mended: do not wait for the next probe's time."""
        self._probe_at = float("-inf")
        self._probes = 0

    # -- inside

    def _acked(self, now: float) -> None:
        self._acks += 1
        self._failures = 0
        self._last_ack_at = now
        if self.state is State.PROBING:
            self._resume(now)

    def _failed(self, reason: str, sent_at: float, now: float, retry_after: float, *, most: int, cause: Cause) -> None:
        self._failures += 1
        if self.state is State.PROBING:
            self._probe_failed(sent_at, now, retry_after)
        elif self.state is State.FLOWING and self._failures >= most:
            self._probe(cause, now, reason)

    def _refused(self, sent_at: float, now: float) -> Verdict:
        """A refusal for good. On a first day it is the set-up that is wrong, and a hundred victims are enough."""
        if self.state is State.PROBING and self.cause is Cause.REFUSALS:
            self._probe_failed(sent_at, now, 0.0)
            return Verdict.NAK
        if self._acks == 0:
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS:
                if self.state is not State.PAUSED:
                    self._probe(Cause.REFUSALS, now)
                return Verdict.TERM if self._refusals == MAX_REFUSALS else Verdict.NAK
        self._failures = 0  # Pointillist is there, and reads what it is sent
        if self.state is State.PROBING:
            if self.cause is Cause.SETUP:
                self._probe_failed(sent_at, now, 0.0)
            else:
                self._resume(now)
        return Verdict.TERM

    def _probe(self, cause: Cause, now: float, answer: str = "") -> None:
        self._slow_start_until = max(1.0, self._limit / 2)
        self._probes = 0
        self._probing_since = now
        if cause is Cause.SETUP and now - self._last_ack_at < RECENT_ACK:
            self._probe_at = now  # it may be this event alone that is refused so: the next one tells
        else:
            self._schedule_probe(now, 0.0)
        self._change(State.PROBING, cause, answer)

    def _probe_failed(self, sent_at: float, now: float, retry_after: float) -> None:
        """Wait longer for the next probe; what was in flight before the probing began is no probe."""
        if sent_at >= self._probing_since:
            self._schedule_probe(now, retry_after)

    def _schedule_probe(self, now: float, retry_after: float) -> None:
        delay = min(PROBE_DELAY * 2.0 ** min(self._probes, 10), MAX_PROBE_DELAY)
        self._probes += 1
        self._probe_at = now + max(retry_after, delay * (0.5 + 0.5 * self._random()))

    def _resume(self, now: float) -> None:
        self._limit = 1.0
        self._failures = 0
        self._start_round(now)
        self._change(State.FLOWING, None)

    def _change(self, state: State, cause: Cause | None, answer: str = "") -> None:
        self.state, self.cause, self.answer = state, cause, answer
        self._changed(self)

    # -- additive increase, multiplicative decrease, once a round trip

    def _start_round(self, now: float) -> None:
        self._round_at = now
        self._answers = 0
        self._overloads = 0
        self._latencies = 0.0
        self._reached = False

    def _count(self, sent_at: float, now: float, in_flight: int, *, overload: bool, at_once: bool = False) -> None:
        """A round ends with the first answer to an event that was sent after it began."""
        if self.state is not State.FLOWING:
            return
        if sent_at < self._round_at:
            return
        self._answers += 1
        self._overloads += overload
        self._latencies += now - sent_at
        self._reached = self._reached or in_flight >= int(self._limit)
        if at_once or self._answers >= int(self._limit) or self._overloads > OVERLOAD_SHARE * self._limit:
            self._end_round(now, at_once=at_once)

    def _end_round(self, now: float, *, at_once: bool) -> None:
        latency = self._latencies / self._answers
        baseline = latency if self._baseline is None else self._baseline
        rises = latency > baseline * LATENCY_RISE and latency > baseline + LATENCY_NOISE
        overloaded = at_once or self._overloads > OVERLOAD_SHARE * self._answers
        if overloaded or (rises and self._reached):
            self._slow_start_until = 0.0
            self._limit = max(1.0, self._limit * SHRINKAGE)
            self._start_round(now)
        else:
            if self._reached:
                grown = self._limit * 2 if self._limit < self._slow_start_until else self._limit + GROWTH
                self._limit = min(grown, float(self._ceiling))
            self._start_round(float("-inf"))
        if not overloaded:
            drift = BASELINE_DRIFT if latency > baseline else 0.5
            self._baseline = baseline + drift * (latency - baseline)
