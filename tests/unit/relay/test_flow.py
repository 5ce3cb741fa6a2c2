"""The flow: every transition, and what always holds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.outbox.base import Pick
from service.pointillist.answer import Answer, Failure
from service.relay.concurrency import START_LIMIT
from service.relay.flow import (
    FAST_PROBES,
    MAX_PROBE_DELAY,
    MAX_REFUSALS,
    MIN_FIRST_TRIES,
    PROBE_DELAY,
    SLOW_DOWN_DELAY,
    SUSPICION,
    SUSPICION_TIME,
    Cause,
    Flow,
    Sent,
    State,
)
from service.relay.outage import ALL_POSTS, ALL_TIME, ALL_TIME_FIRST, ENOUGH, FEW, QUIET_TIME
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
            waiting=waiting,
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


def test_it_begins_flowing_with_a_small_limit() -> None:
    bench = Bench()
    assert (bench.flow.state, bench.limit, bench.flow.is_getting_through(bench.now)) == (
        State.FLOWING,
        START_LIMIT,
        True,
    )


def test_it_begins_below_a_ceiling_lower_than_the_usual_start() -> None:
    assert Bench(ceiling=3).limit == 3


# -- an outage, and a wrong set-up, are statements about Pointillist


FAILURES = [401, 403, 404, 301, 501, 503, 500, 408, Failure.TIMEOUT, Failure.REFUSED, Failure.DNS]


@pytest.mark.parametrize("failure", FAILURES)
def test_where_nothing_ever_passed_a_few_failed_first_tries_begin_probing(failure: int | Failure) -> None:
    bench = Bench(has_passed=False)
    for _ in range(FEW - 1):
        assert bench.answer(failure) is Verdict.NAK
    assert bench.flow.state is State.FLOWING

    bench.answer(failure)
    is_setup = failure in {401, 403, 404, 301, 501}
    assert bench.changes == [(State.PROBING, Cause.SETUP if is_setup else Cause.OUTAGE)]
    assert not bench.flow.is_getting_through(bench.now)


@pytest.mark.parametrize("failure", [403, 500, Failure.TIMEOUT])
def test_soon_after_a_2xx_it_takes_many_failed_first_tries(failure: int | Failure) -> None:
    bench = Bench()
    bench.answer(200)
    sent = [bench.send() for _ in range(ENOUGH)]
    for one in sent[:-1]:
        bench.answer(failure, one)
    assert bench.changes == []

    bench.answer(failure, sent[-1])
    assert bench.flow.state is State.PROBING


@pytest.mark.parametrize("failure", [403, 500])
def test_after_half_a_minute_without_a_2xx_a_few_are_enough(failure: int) -> None:
    bench = Bench()
    bench.answer(200)
    for _ in range(FEW):
        bench.answer(failure)
    assert bench.changes == []

    bench.now += QUIET_TIME
    bench.answer(failure)
    assert bench.flow.state is State.PROBING


def test_failures_that_were_sent_before_the_last_2xx_do_not_count() -> None:
    bench = Bench()
    for _ in range(3):
        sent = [bench.send() for _ in range(ENOUGH)]
        bench.now += 10
        bench.answer(200)
        for one in sent:
            bench.answer(500, one)
    assert bench.changes == []


def test_failures_with_successes_between_them_leave_it_flowing() -> None:
    bench = Bench()
    for _ in range(5):
        for _ in range(ENOUGH - 1):
            bench.answer(503)
            bench.now -= LATENCY  # all of it soon after the 2xx
        bench.answer(200)
    assert bench.changes == []


def test_one_event_that_fails_again_and_again_beside_others_that_pass_changes_nothing() -> None:
    bench = Bench()
    for _ in range(5 * ENOUGH):
        bench.answer(200)
        bench.answer(500, event=7, is_repeat=True)
        bench.now += 1
    assert bench.changes == []
    assert bench.flow.is_getting_through(bench.now)


def test_where_there_are_no_first_tries_different_events_count() -> None:
    bench = Bench()
    bench.answer(200)
    bench.now += QUIET_TIME
    for number in range(10 * FEW):
        bench.answer(500, event=number % (FEW - 1) + 1, is_repeat=True)
    assert bench.changes == []

    bench.answer(500, event=FEW, is_repeat=True)
    assert bench.flow.state is State.PROBING


@pytest.mark.parametrize(
    ("failure", "has_passed", "patience"),
    [(403, True, ALL_TIME_FIRST), (500, False, ALL_TIME_FIRST), (500, True, ALL_TIME)],
)
def test_where_few_events_may_be_sent_all_of_them_having_failed_decides(
    failure: int, has_passed: bool, patience: float
) -> None:
    # given two events, and no others
    bench = Bench(has_passed=has_passed)
    for number in range(ALL_POSTS):
        bench.answer(failure, event=number % 2 + 1, is_repeat=number > 1, waiting=2)
    assert bench.changes == []

    # when
    bench.now += patience
    bench.answer(failure, event=1, is_repeat=True, waiting=2)

    # then
    assert bench.flow.state is State.PROBING


def test_where_one_event_that_may_be_sent_was_not_tried_nothing_is_decided() -> None:
    bench = Bench(has_passed=False)
    for _ in range(10 * ALL_POSTS):
        bench.answer(403, event=1, is_repeat=True, waiting=2)
        bench.now += ALL_TIME
    assert bench.changes == []


def test_several_events_that_fail_for_some_seconds_already_mean_that_it_is_not_getting_through() -> None:
    bench = Bench()
    bench.answer(200)
    for _ in range(FEW - 1):
        assert bench.flow.is_getting_through(bench.now)
        bench.answer(503)
    bench.now += 15
    assert not bench.flow.is_getting_through(bench.now)

    bench.answer(200)
    assert bench.flow.is_getting_through(bench.now)


def test_another_mapping_or_token_is_a_first_day_again() -> None:
    bench = Bench()
    bench.answer(200)
    bench.flow.begin_again()
    for _ in range(MAX_REFUSALS):
        bench.answer(400)
    assert bench.flow.cause is Cause.REFUSALS


# -- probes


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_makes_it_flow_again(status: int) -> None:
    bench = probing()
    bench.wait_for_probe()

    assert bench.answer(status) is Verdict.ACK
    assert (bench.flow.state, bench.flow.cause, bench.flow.answer) == (State.FLOWING, None, "")


def test_a_2xx_that_was_sent_before_the_probing_makes_it_flow_again_too() -> None:
    bench = Bench(has_passed=False)
    sent = bench.send()
    for _ in range(FEW):
        bench.answer(401)
    assert bench.answer(200, sent) is Verdict.ACK
    assert bench.flow.state is State.FLOWING


def test_after_a_false_alarm_the_limit_is_half_of_what_it_was_and_after_an_outage_one() -> None:
    soon, late = probing(), probing()
    soon.answer(200)
    late.now += 60
    late.answer(200)
    assert (soon.limit, late.limit) == (START_LIMIT // 2, 1)


def test_an_event_refused_for_good_ends_an_outage() -> None:
    bench = Bench()
    bench.answer(200)
    bench.now += QUIET_TIME
    for _ in range(FEW):
        bench.answer(503)
    bench.wait_for_probe()

    assert bench.answer(400) is Verdict.TERM
    assert bench.flow.state is State.FLOWING


def test_an_event_refused_for_good_does_not_put_the_setup_right() -> None:
    bench = probing()
    bench.wait_for_probe()
    assert bench.answer(400) is Verdict.TERM
    assert bench.flow.state is State.PROBING


def test_the_first_probes_are_close_together_and_then_the_delay_doubles_up_to_a_cap() -> None:
    bench = probing()
    bench.now -= LATENCY
    waits = []
    for _ in range(FAST_PROBES + 12):
        waits.append(bench.wait_for_probe())
        sent = bench.send()
        bench.answer(401, sent)

    share = 0.5 + 0.5 * JITTER
    assert waits[1 : FAST_PROBES + 1] == pytest.approx([PROBE_DELAY * share] * FAST_PROBES)
    assert waits[FAST_PROBES + 1 :] == pytest.approx(
        [min(PROBE_DELAY * 2**n, MAX_PROBE_DELAY) * share for n in range(1, 12)]
    )


def test_a_probe_does_not_wait_for_the_answer_to_the_one_before() -> None:
    bench = probing()
    for number in range(5):
        bench.wait_for_probe()
        bench.send()
        assert bench.flow.in_flight == number + 1


def test_probes_take_in_turn_the_newest_the_oldest_and_one_that_was_tried() -> None:
    bench = probing()
    first = []
    for _ in range(6):
        bench.wait_for_probe()
        first.append(bench.flow.picks()[0])
        assert set(bench.flow.picks()) == {Pick.NEWEST, Pick.NEW, Pick.TRIED}
        bench.answer(401)
    assert first == [Pick.NEWEST, Pick.NEW, Pick.TRIED] * 2


def test_failures_in_flight_when_the_probing_began_delay_no_probe_and_change_no_cause() -> None:
    # given
    bench = Bench(has_passed=False)
    sent = [bench.send() for _ in range(60)]
    for one in sent[:FEW]:
        bench.answer(401, one)
    bench.now += 0.01
    opens_at = bench.flow.opens_at(bench.now)

    # when
    for one in sent[FEW:]:
        bench.answer(503, one, retry_after=60.0)

    # then
    assert bench.flow.opens_at(bench.now) == opens_at
    assert bench.changes == [(State.PROBING, Cause.SETUP)]


def test_the_cause_and_the_answer_follow_the_latest_probe() -> None:
    bench = probing(Failure.REFUSED)
    assert (bench.flow.cause, bench.flow.answer) == (Cause.OUTAGE, "refused")

    bench.wait_for_probe()
    bench.answer(401)
    assert (bench.flow.cause, bench.flow.answer) == (Cause.SETUP, "401")

    bench.wait_for_probe()
    bench.answer(403)
    assert (bench.flow.cause, bench.flow.answer) == (Cause.SETUP, "403")
    assert [cause for _, cause in bench.changes] == [Cause.OUTAGE, Cause.SETUP]


def test_a_probe_waits_as_long_as_retry_after_asks() -> None:
    bench = probing()
    bench.wait_for_probe()
    bench.answer(503, retry_after=40.0)
    assert bench.wait_for_probe() == pytest.approx(40.0)


def test_something_put_right_is_probed_at_once() -> None:
    bench = probing()
    bench.flow.probe_now()
    assert bench.limit == 1


# -- the newest first, where the oldest fail


def test_while_many_of_the_oldest_fail_the_newest_are_tried_too() -> None:
    bench = Bench()
    bench.answer(200)
    for _ in range(SUSPICION):
        assert not bench.flow.takes_newest(bench.now)
        bench.answer(500)
    assert sorted(bench.flow.takes_newest(bench.now) for _ in range(4)) == [False, False, True, True]

    bench.now += SUSPICION_TIME
    assert not bench.flow.takes_newest(bench.now)


# -- 429


def test_a_429_among_others_holds_only_its_event() -> None:
    bench = Bench()
    for _ in range(2 * MIN_FIRST_TRIES):
        bench.answer(200)
    assert bench.answer(429, retry_after=7.0) is Verdict.NAK
    assert (bench.flow.state, bench.limit, bench.flow.opens_at(bench.now)) == (State.FLOWING, START_LIMIT, None)


def test_where_most_first_tries_are_429_everything_waits_for_the_retry_after() -> None:
    bench = Bench()
    for _ in range(MIN_FIRST_TRIES):
        bench.answer(429, retry_after=7.0)
    assert (bench.flow.state, bench.limit, bench.flow.opens_at(bench.now)) == (State.FLOWING, 0, bench.now + 7.0)
    assert bench.flow.target > 0

    bench.now += 7.0
    assert bench.limit > 0
    assert bench.flow.opens_at(bench.now) is None


def test_repeats_that_get_429_hold_nothing() -> None:
    bench = Bench()
    for _ in range(5 * MIN_FIRST_TRIES):
        bench.answer(429, retry_after=7.0, is_repeat=True)
    assert bench.limit > 0


def test_429_without_retry_after_holds_everything_for_a_moment() -> None:
    bench = Bench()
    for _ in range(MIN_FIRST_TRIES):
        bench.answer(429)
    assert bench.flow.opens_at(bench.now) == bench.now + SLOW_DOWN_DELAY * JITTER


def test_a_shorter_hold_does_not_end_a_longer_one() -> None:
    bench = Bench()
    for _ in range(MIN_FIRST_TRIES):
        bench.answer(429, retry_after=60.0)
    until = bench.flow.opens_at(bench.now)
    bench.answer(429, retry_after=1.0)
    assert bench.flow.opens_at(bench.now) == until


# -- refusals for good


def test_a_hundred_refusals_where_nothing_was_ever_taken_mean_a_wrong_setup() -> None:
    # given
    bench = Bench(has_passed=False)
    verdicts = [bench.answer(400) for _ in range(MAX_REFUSALS)]
    assert verdicts == [Verdict.TERM] * MAX_REFUSALS
    assert bench.changes == [(State.PROBING, Cause.REFUSALS)]

    # when
    bench.wait_for_probe()

    # then the next one is kept
    assert bench.answer(400) is Verdict.NAK
    assert bench.flow.state is State.PROBING


def test_refusals_in_flight_when_the_hundredth_came_are_kept() -> None:
    bench = Bench(has_passed=False)
    sent = [bench.send() for _ in range(MAX_REFUSALS + 30)]
    assert [bench.answer(422, one) for one in sent] == [Verdict.TERM] * MAX_REFUSALS + [Verdict.NAK] * 30


@pytest.mark.parametrize("is_earlier", [False, True], ids=["in this process", "in an earlier one"])
def test_refusals_never_stop_a_setup_that_took_an_event_once(is_earlier: bool) -> None:
    bench = Bench(has_passed=is_earlier)
    if not is_earlier:
        bench.answer(200)
    assert {bench.answer(400) for _ in range(3 * MAX_REFUSALS)} == {Verdict.TERM}
    assert bench.flow.state is State.FLOWING


def test_refusals_are_given_up_again_once_one_event_was_taken() -> None:
    bench = Bench(has_passed=False)
    for _ in range(MAX_REFUSALS):
        bench.answer(400)
    bench.wait_for_probe()
    bench.answer(200)
    assert bench.answer(400) is Verdict.TERM


def test_a_first_day_that_also_fills_the_dead_letters_probes_on_once_they_have_capacity() -> None:
    # given a hundred refusals, of which the last left no capacity for another dead letter
    bench = Bench(has_passed=False)
    for _ in range(MAX_REFUSALS):
        bench.answer(400)
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    bench.flow.unpause(Cause.DEAD_LETTERS_FULL)

    # when
    verdict = bench.answer(400)

    # then it is kept, and does not go round and round
    assert (verdict, bench.flow.state, bench.limit) == (Verdict.NAK, State.PROBING, 0)


# -- pauses


def test_a_pause_sends_nothing_until_it_ends() -> None:
    bench = Bench()
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    assert (bench.flow.state, bench.limit, bench.flow.target) == (State.PAUSED, 0, 0)
    assert bench.flow.opens_at(bench.now) is None
    assert not bench.flow.is_getting_through(bench.now)

    bench.flow.unpause(Cause.DEAD_LETTERS_FULL)
    assert (bench.flow.state, bench.limit) == (State.FLOWING, START_LIMIT)


def test_a_pause_is_not_ended_by_an_answer() -> None:
    bench = Bench()
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    for status in (200, 401, 400, 503):
        bench.answer(status)
    assert bench.flow.state is State.PAUSED


def test_pausing_twice_and_ending_no_pause_are_no_changes() -> None:
    bench = Bench()
    bench.flow.unpause(Cause.DEAD_LETTERS_FULL)
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    assert bench.changes == [(State.PAUSED, Cause.DEAD_LETTERS_FULL)]


def test_the_end_of_one_cause_of_a_pause_leaves_the_other() -> None:
    bench = Bench()
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    bench.flow.pause(Cause.SETUP)
    bench.flow.unpause(Cause.DEAD_LETTERS_FULL)
    assert (bench.flow.state, bench.flow.cause) == (State.PAUSED, Cause.SETUP)


# -- repeats


def test_while_first_tries_wait_repeats_have_at_most_a_quarter_of_the_places() -> None:
    bench = Bench()
    for _ in range(20):  # repeats pass: their rate is no bound
        bench.flow.repeats(bench.now, 0, others_wait=True)
        bench.answer(200, is_repeat=True)
    bench.now += 10
    assert bench.flow.repeats(bench.now, 0, others_wait=True) == START_LIMIT // 4
    assert bench.flow.repeats(bench.now, START_LIMIT // 4, others_wait=True) == 0
    assert bench.flow.repeats(bench.now, 0, others_wait=False) == START_LIMIT


def test_while_no_repeat_passes_there_is_one_a_second() -> None:
    bench = Bench()
    sent = 0
    for _ in range(600):  # a minute, however many wait
        if bench.flow.repeats(bench.now, 0, others_wait=False):
            bench.flow.take_repeat()
            sent += 1
            bench.answer(500, bench.send(is_repeat=True))
        bench.now += 0.1
    assert 55 <= sent <= 61


# -- always


ANSWERS = st.one_of(st.sampled_from([200, 200, 200, 400, 401, 429, 500, 503]), st.sampled_from(list(Failure)))


@given(
    ceiling=st.integers(1, 300),
    has_passed=st.booleans(),
    steps=st.lists(st.tuples(ANSWERS, st.floats(0, 20), st.booleans(), st.integers(0, 20)), max_size=200),
)
def test_the_limit_is_always_between_one_and_the_ceiling(
    ceiling: int, has_passed: bool, steps: list[tuple[int | Failure, float, bool, int]]
) -> None:
    bench = Bench(ceiling, has_passed=has_passed)
    out: list[Sent] = []
    for status, seconds, is_repeat, answers in steps:
        while len(out) < bench.limit:
            out.append(bench.send(is_repeat=is_repeat))
        bench.now += seconds
        for _ in range(min(answers, len(out))):
            bench.answer(status, out.pop(0))
        assert bench.flow.in_flight == len(out)
        assert 1 <= bench.flow.target <= ceiling
        assert bench.limit <= max(ceiling, len(out) + 1)
        if bench.limit == 0:
            assert bench.flow.opens_at(bench.now) is not None


@given(answers=st.lists(ANSWERS, max_size=300), has_passed=st.booleans())
def test_a_delivered_event_is_acked_and_one_that_may_still_pass_is_kept(
    answers: list[int | Failure], has_passed: bool
) -> None:
    bench = Bench(has_passed=has_passed)
    for status in answers:
        verdict = bench.answer(status)
        if status == 200:
            assert verdict is Verdict.ACK
        elif status != 400:
            assert verdict is Verdict.NAK
