"""The flow of POSTs: how many may be in flight, how many of them repeats, and the state machine above both.

    flowing   n      first tries and repeats, within the concurrency limit and the rate of repeats
    probing   1      POST at a time of its own, after an outage or a wrong set-up was proved; any 2xx ends it
    paused    0      for as long as there is a cause, such as no capacity for dead letters

A probe is sent at its time, whether or not the one before was answered. Pure: times are passed in, in seconds of one
steady clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from service.outbox.base import Pick
from service.relay.concurrency import ConcurrencyLimit, Group
from service.relay.outage import Outage
from service.relay.repeat_rate import RepeatRate
from service.relay.retry import RetryDecision, Verdict

REPEAT_SHARE = 0.25  # share of the limit that repeats may take while first tries wait
MAX_REFUSALS = 100  # refused events with no 2xx so far that mean a wrong set-up
MIN_FIRST_TRIES = 10  # answers to first tries sent together over which a rate limit of Pointillist shows
SLOW_DOWN_SHARE = 0.5  # share of 429 among them that holds the whole relay
SLOW_DOWN_DELAY = 0.5  # seconds, the most that a 429 without Retry-After holds it
PROBE_DELAY = 0.5  # seconds between probes, at most; doubles with each after the first FAST_PROBES
FAST_PROBES = 60
MAX_PROBE_DELAY = 30.0  # seconds
SUSPICION = 10  # failed first tries in a row after which the newest are tried, too
SUSPICION_TIME = 30.0  # seconds for which they are
NEWEST_TURNS = 2  # first tries of which all but one are the newest
FALSE_ALARM = 30.0  # seconds within which the end of an outage makes it a false alarm


class State(StrEnum):
    """The state of the relay."""

    FLOWING = "flowing"
    PROBING = "probing"
    PAUSED = "paused"


class Cause(StrEnum):
    """The cause of a state other than flowing."""

    SETUP = "setup"
    """Pointillist says that the token, the address or the account is wrong."""
    REFUSALS = "refusals"
    """Pointillist has refused a hundred events and taken none: the set-up, too."""
    OUTAGE = "outage"
    """Nothing gets through for the moment."""
    DEAD_LETTERS_FULL = "dead_letters_full"
    """There is no capacity for another dead letter."""


@dataclass(slots=True, eq=False)
class Sent:
    """A POST in flight."""

    at: float
    is_repeat: bool
    group: Group | None
    """None where it is a repeat or a probe."""


class Flow:
    """The state machine.

    Args:
        ceiling: POSTs that may ever be in flight.
        random: uniform in [0, 1), for jitter.
        changed: called after every change of state or cause.
        has_passed: a 2xx was seen with this address, token and mapping, in an earlier process.
    """

    def __init__(
        self,
        ceiling: int,
        random: Callable[[], float],
        changed: Callable[["Flow"], None],
        *,
        has_passed: bool = False,
    ) -> None:
        self._random = random
        self._changed = changed
        self._concurrency = ConcurrencyLimit(ceiling, has_passed=has_passed)
        self._repeats = RepeatRate()
        self._outage = Outage(has_passed=has_passed)
        self._mode = State.FLOWING
        self._mode_cause: Cause | None = None
        self._pauses: dict[Cause, None] = {}
        self.answer = ""
        """The answer that the mode follows from, such as "401" or "timeout"."""
        self.in_flight = 0
        """POSTs in flight."""
        self._held_until = float("-inf")
        self._probe_at = float("-inf")
        self._probes = 0
        self._turn = 0
        self._probing_since = float("-inf")
        self._refusals = 0
        self._suspicious_until = float("-inf")

    # -- asked by the relay

    @property
    def state(self) -> State:
        """The state."""
        return State.PAUSED if self._pauses else self._mode

    @property
    def cause(self) -> Cause | None:
        """The cause of the state; None while flowing."""
        return next(iter(self._pauses), self._mode_cause)

    @property
    def has_passed(self) -> bool:
        """A 2xx was seen with this address, token and mapping."""
        return self._outage.has_passed

    def limit(self, now: float) -> int:
        """POSTs that may be in flight now, repeats included."""
        if self._pauses or now < self._held_until:
            return 0
        if self._mode is State.PROBING:
            return self.in_flight + 1 if now >= self._probe_at else 0
        return self._concurrency.value

    def repeats(self, now: float, taken: int, *, others_wait: bool) -> int:
        """Repeats that may be taken now.

        Args:
            now: the time.
            taken: repeats that are taken and not answered.
            others_wait: there are first tries to send.
        """
        limit = self._concurrency.value
        places = max(1, int(limit * REPEAT_SHARE)) if others_wait else limit
        return max(0, min(self._repeats.available(now), places - taken))

    def is_suspicious(self, now: float) -> bool:
        """Return True while the oldest first tries have failed in a row, so that the newest are tried beside them."""
        return now < self._suspicious_until

    def takes_newest(self, now: float) -> bool:
        """Return True if the next first try is to be the newest pending event, not the oldest."""
        if not self.is_suspicious(now):
            return False
        self._turn += 1
        return self._turn % NEWEST_TURNS != 0

    def repeats_at(self, now: float) -> float | None:
        """The time at which the rate of repeats allows one; None if it does now."""
        return self._repeats.available_at(now)

    def take_repeat(self) -> None:
        """Spend the token of a repeat that is taken."""
        self._repeats.take()

    def give_back_repeat(self) -> None:
        """Return the token of a repeat that was taken and is not sent."""
        self._repeats.give_back()

    def picks(self) -> tuple[Pick, ...]:
        """Return the kinds of events that the next probe may take, in the order of preference: each has its turn."""
        turns = (Pick.NEWEST, Pick.NEW, Pick.TRIED)
        turn = self._turn % len(turns)
        return turns[turn:] + turns[:turn]

    def opens_at(self, now: float) -> float | None:
        """The time at which the limit rises by itself; None where it does not."""
        at = max(self._held_until, self._probe_at if self._mode is State.PROBING else float("-inf"))
        return at if not self._pauses and at > now else None

    @property
    def target(self) -> int:
        """The limit, regardless of temporary holds."""
        return {State.PAUSED: 0, State.PROBING: 1, State.FLOWING: self._concurrency.value}[self.state]

    def is_getting_through(self, now: float) -> bool:
        """Pointillist takes events, as far as the latest answers show."""
        return self.state is State.FLOWING and not self._outage.is_telling(now)

    # -- reported by the relay

    def sent(self, now: float, *, is_repeat: bool, is_newest: bool = False) -> Sent:
        """Count a POST that leaves; returns its record, for `answered` or `abandoned`."""
        self.in_flight += 1
        self._outage.sent(now)
        group = None
        if self._mode is State.PROBING:
            self._turn += 1
            self._schedule_probe(now)
        elif not (is_repeat or is_newest):
            group = self._concurrency.sent(now)
        return Sent(now, is_repeat, group)

    def abandoned(self, sent: Sent, now: float) -> None:
        """Forget a POST that will not be answered."""
        self.in_flight -= 1
        if sent.group is not None:
            self._concurrency.abandoned(sent.group, now)

    def answered(
        self,
        sent: Sent,
        decision: RetryDecision,
        *,
        event: int,
        now: float,
        waiting: Callable[[], int],
        retry_after: float = 0.0,
    ) -> Verdict:
        """Count an answer; returns the settlement of its event: ACK, NAK or TERM.

        Args:
            sent: the POST's record.
            decision: the meaning of the answer by itself.
            event: identifies the event.
            now: the time of the answer.
            waiting: returns the number of events that may be sent, those in flight included.
            retry_after: seconds that the answer asks to wait.
        """
        if self._mode is State.FLOWING:
            self._concurrency.answered(
                sent.group,
                sent_at=sent.at,
                now=now,
                failed=decision.verdict is Verdict.NAK and decision.overload,
                passed=decision.verdict is Verdict.ACK,
                in_flight=self.in_flight,
            )
        if decision.slow_down:
            self._slow_down(sent, now, retry_after)
        self.in_flight -= 1
        if decision.verdict is Verdict.ACK:
            self._passed(now)
            if sent.is_repeat:
                self._repeats.passed()
            return Verdict.ACK
        if decision.verdict is Verdict.TERM:
            return self._refused(sent, now)
        if sent.is_repeat:
            self._repeats.failed()
        is_setup = decision.verdict is Verdict.SETUP
        self._failed(sent, decision.reason, event, now, waiting, retry_after, is_setup=is_setup)
        return Verdict.NAK

    def pause(self, cause: Cause) -> None:
        """Send nothing while this cause lasts."""
        if cause not in self._pauses:
            self._pauses[cause] = None
            self._changed(self)

    def unpause(self, cause: Cause) -> None:
        """End a cause of a pause; another one goes on."""
        if cause in self._pauses:
            del self._pauses[cause]
            self._changed(self)

    def probe_now(self) -> None:
        """Send the next probe at once: something was put right."""
        self._probe_at = float("-inf")
        self._probes = 0

    def begin_again(self) -> None:
        """Forget that a 2xx was seen: the address, the token or the mapping is another."""
        self._outage.has_passed = False
        self._outage.forget()
        self._refusals = 0
        self.probe_now()

    # -- inside

    def _slow_down(self, sent: Sent, now: float, retry_after: float) -> None:
        """Hold the whole relay where many of the first tries that were sent together got a 429, however late."""
        group = sent.group
        if group is None:
            return
        group.slowed += 1
        if group.answered >= MIN_FIRST_TRIES and group.slowed >= SLOW_DOWN_SHARE * group.answered:
            self._held_until = max(self._held_until, now + (retry_after or SLOW_DOWN_DELAY * self._random()))

    def _passed(self, now: float) -> None:
        self._outage.passed(now)
        if self._mode is State.PROBING:
            self._resume(now)

    def _failed(  # noqa: PLR0917  as `answered` has them
        self,
        sent: Sent,
        reason: str,
        event: int,
        now: float,
        waiting: Callable[[], int],
        retry_after: float,
        *,
        is_setup: bool,
    ) -> None:
        cause = Cause.SETUP if is_setup else Cause.OUTAGE
        if self._mode is State.PROBING:
            if sent.at > self._probing_since:
                self._probe_at = max(self._probe_at, now + retry_after)
                self._report(cause, reason)
        elif self._outage.failed(
            event, sent_at=sent.at, now=now, is_repeat=sent.is_repeat, is_setup=is_setup, waiting=waiting()
        ):
            self._probe(cause, reason, now)
        elif self._outage.first_tries >= SUSPICION:
            self._suspicious_until = now + SUSPICION_TIME

    def _refused(self, sent: Sent, now: float) -> Verdict:
        """A refusal for good. On a first day it is the set-up that is wrong, and a hundred victims are enough."""
        if self._mode is State.PROBING and self._mode_cause is Cause.REFUSALS:
            return Verdict.NAK
        if not self._outage.has_passed:
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS:
                if self._mode is State.FLOWING:
                    self._probe(Cause.REFUSALS, "", now)
                else:
                    self._report(Cause.REFUSALS, "")
                return Verdict.TERM if self._refusals == MAX_REFUSALS else Verdict.NAK
        if self._mode is State.PROBING:
            if self._mode_cause is Cause.OUTAGE and sent.at > self._probing_since:
                self._resume(now)  # Pointillist is up, and reads the records
        else:
            self._outage.forget()
        return Verdict.TERM

    def _probe(self, cause: Cause, answer: str, now: float) -> None:
        self._mode = State.PROBING
        self._probes = self._turn = 0
        self._probing_since = now
        self._schedule_probe(now)
        self._report(cause, answer)

    def _schedule_probe(self, now: float) -> None:
        delay = min(PROBE_DELAY * 2.0 ** min(max(0, self._probes - FAST_PROBES), 10), MAX_PROBE_DELAY)
        self._probes += 1
        self._probe_at = now + delay * (0.5 + 0.5 * self._random())

    def _report(self, cause: Cause, answer: str) -> None:
        """The cause and the answer follow the latest probe."""
        self.answer = answer
        if cause is not self._mode_cause:
            self._mode_cause = cause
            self._changed(self)

    def _resume(self, now: float) -> None:
        self._mode, self._mode_cause, self.answer = State.FLOWING, None, ""
        self._concurrency.restart(now, is_false_alarm=now - self._probing_since <= FALSE_ALARM)
        self._outage.forget()
        self._changed(self)
