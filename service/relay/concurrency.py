"""The concurrency limit: the number of POSTs that may be in flight (additive increase, multiplicative decrease).

First tries are judged in groups that were sent together, each once all of it is answered: judged in the order of the
answers, slow failures would look like a rising share of them. A group shows overload where clearly more of it failed
than usual, or where its latency rose. A cut after which as many fail changed nothing, and is taken back.

Pure: times are passed in, in seconds of one steady clock.
"""

from dataclasses import dataclass, field, replace
from math import sqrt

START_LIMIT = 8  # POSTs in flight at the start, before anything is known
MIN_GROUP = 20  # first tries that are judged together, at least
SLOW_START = 2.0  # added to the limit per answer, before anything is known of overload
GROWTH = 1.0  # added to the limit per round trip, or per two groups if that is more, afterwards
SLOW = 1.0  # seconds; a latency from which a round trip counts in full
SHRINKAGE = 0.8  # factor of a cut
EXCESS = 0.1  # share of failures above the usual one that is no overload ...
DEVIATIONS = 2.0  # ... and on top of it as many standard deviations of the usual share in a group of this size
STAYING = 0.8  # share of the excess that stays after a cut which changed nothing ...
STAYING_ALARM = 0.9  # ... and after a false alarm, before which everything failed
USUAL_RISE = 0.1  # weight of a group with more failures than usual in the usual share
USUAL_FALL = 0.3  # weight of one with fewer
LATENCY_RISE = 1.2  # a group whose latency is above the baseline's by this factor ...
LATENCY_NOISE = 0.01  # ... and these seconds shows overload
MIN_LATENCIES = 4  # successes that a group must have for its latency to say something
BASELINE_RISE = 0.02  # weight of a group with a higher latency than the baseline's
BASELINE_FALL = 0.5  # weight of one with a lower


@dataclass(slots=True, eq=False)
class Group:
    """First tries that were sent together."""

    began_at: float
    size: int
    """First tries it takes."""
    sent: int = 0
    answered: int = 0
    failed: int = 0
    slowed: int = 0
    """Answered with 429."""
    reached: bool = False
    """The limit was reached while they were in flight."""
    latencies: list[float] = field(default_factory=list)
    """Of those that passed, in seconds."""


@dataclass(slots=True, frozen=True)
class _Cut:
    """A cut whose effect is not known yet."""

    limit: float
    """The limit before."""
    slow_start_until: float
    excess: float
    """Share of failures above the usual one, before."""
    staying: float
    """Share of the excess that stays where the cut changed nothing."""


class ConcurrencyLimit:
    """The limit of one relay.

    Args:
        ceiling: the highest limit.
        has_passed: a 2xx was seen in an earlier process; without one the limit grows only after the first.
    """

    def __init__(self, ceiling: int, *, has_passed: bool) -> None:
        self._ceiling = float(ceiling)
        self._limit = float(min(START_LIMIT, ceiling))
        self._slow_start_until = self._ceiling
        self._group: Group | None = None
        self._judged_from = float("-inf")  # groups that began before say nothing about this limit
        self._cut: _Cut | None = None
        self._usual: float | None = None
        self._baseline: float | None = None
        self._has_passed = has_passed  # something passed since the cut or, before the first one, at all

    @property
    def value(self) -> int:
        """POSTs that may be in flight; 1 or more."""
        return int(self._limit)

    def sent(self, now: float) -> Group:
        """Count a first try that is being sent; returns its group."""
        group = self._group
        if group is None or group.sent >= group.size:
            group = self._group = Group(now, max(int(self._limit), MIN_GROUP))
        group.sent += 1
        return group

    def answered(
        self, group: Group | None, *, sent_at: float, now: float, failed: bool, passed: bool, in_flight: int
    ) -> None:
        """Count the answer to a POST.

        Args:
            group: the one that `sent` returned; None for a POST that is in no group.
            sent_at: the time of the POST.
            now: the time of the answer.
            failed: it may be a sign of overload: 429, 5xx or a timeout.
            passed: it was delivered.
            in_flight: POSTs that were in flight, this one included.
        """
        if sent_at < self._judged_from:
            return
        self._has_passed = self._has_passed or passed
        is_reached = in_flight >= int(self._limit)
        is_slow_failure = (
            not passed and self._cut is None and now - sent_at >= SLOW
        )  # it holds a place, and says nothing
        if is_reached and self._has_passed and (passed or is_slow_failure):
            self._grow(now - sent_at)
        if group is None:
            return
        group.reached = group.reached or is_reached
        group.answered += 1
        if failed:
            group.failed += 1
        elif passed:
            group.latencies.append(now - sent_at)
        if group.answered >= group.sent >= group.size:
            self._judge(group, now)

    def abandoned(self, group: Group, now: float) -> None:
        """Forget a first try that will never be answered."""
        group.sent -= 1
        group.size -= 1
        if group.answered and group.answered >= group.sent >= group.size:
            self._judge(group, now)

    def restart(self, now: float, *, is_false_alarm: bool) -> None:
        """Begin again after a pause: with half of the earlier limit after a false alarm, with 1 otherwise."""
        half = max(1.0, self._limit / 2)
        if is_false_alarm:  # a cut like any other: where as many fail after it, it is taken back
            cut = self._cut or _Cut(self._limit, self._slow_start_until, 0.0, 0.0)
            self._cut = replace(cut, excess=1.0 - (self._usual or 0.0), staying=STAYING_ALARM)
            self._slow_start_until = 0.0
            self._has_passed = False
        else:
            self._cut = None
            self._slow_start_until = half
        self._limit = half if is_false_alarm else 1.0
        self._judged_from = now
        self._group = None

    def _grow(self, latency: float) -> None:
        """Grow by one answer; a slow round trip counts in full, as few of them come before a group is judged."""
        round_trip = self._limit if latency >= SLOW else max(self._limit, 2.0 * MIN_GROUP)
        step = SLOW_START if self._limit < self._slow_start_until else GROWTH / round_trip
        self._limit = min(self._limit + step, self._ceiling)

    def _judge(self, group: Group, now: float) -> None:
        if group.began_at < self._judged_from:
            return
        share = group.failed / group.answered
        usual = share if self._usual is None else self._usual
        excess = share - usual
        noise = EXCESS + DEVIATIONS * sqrt(usual * (1 - usual) / group.answered)
        if self._cut is not None:
            self._check_cut(self._cut, group, now, share, excess, noise)
        elif excess > noise:
            self._shrink(now, excess)
        else:
            self._usual = usual + (USUAL_RISE if excess > 0 else USUAL_FALL) * excess
            self._judge_latency(group, now)

    def _check_cut(  # noqa: PLR0917  the parts of one judgement
        self, cut: _Cut, group: Group, now: float, share: float, excess: float, noise: float
    ) -> None:
        """Take a cut back that changed nothing; cut again where it helped, but not enough."""
        if excess >= cut.staying * cut.excess and (not self._has_passed or self._is_slow(group)):
            self._shrink(now, None)  # nothing passes, or slowly: the next cut decides, or the end of the flow
            self._cut = cut
        elif excess >= cut.staying * cut.excess:
            self._limit = max(self._limit, cut.limit)
            self._slow_start_until = cut.slow_start_until
            self._usual = share
            self._cut = None
        elif excess > noise / 2:
            self._cut = None
            self._shrink(now, excess)
        else:
            self._cut = None
            self._usual = share - (1 - USUAL_RISE) * excess

    def _shrink(self, now: float, excess: float | None) -> None:
        if excess is not None:
            self._cut = _Cut(self._limit, self._slow_start_until, excess, STAYING)
        self._slow_start_until = 0.0
        self._has_passed = False
        self._limit = max(1.0, self._limit * SHRINKAGE)
        self._judged_from = now
        self._group = None

    def _judge_latency(self, group: Group, now: float) -> None:
        """The lower quartile decides: however slow a part of the events is, the rest shows the server's own latency."""
        if len(group.latencies) < MIN_LATENCIES:
            return
        if self._is_slow(group) and group.reached:
            self._shrink(now, None)
        latency = _lower_quartile(group.latencies)
        baseline = latency if self._baseline is None else self._baseline
        self._baseline = baseline + (BASELINE_RISE if latency > baseline else BASELINE_FALL) * (latency - baseline)

    def _is_slow(self, group: Group) -> bool:
        """Return True if the latency of a group is above the baseline."""
        if not group.latencies or self._baseline is None:
            return False
        latency = _lower_quartile(group.latencies)
        return latency > self._baseline * LATENCY_RISE and latency > self._baseline + LATENCY_NOISE


def _lower_quartile(latencies: list[float]) -> float:
    return sorted(latencies)[len(latencies) // 4]
