"""The flow: every transition, and what always holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pointillist.answer import Answer, Failure
from service.relay.flow import (
    FAILURES_TELLING,
    MAX_FAILURES,
    MAX_PROBE_DELAY,
    MAX_REFUSALS,
    PROBE_DELAY,
    SLOW_DOWN_DELAY,
    START_LIMIT,
    Cause,
    Flow,
    State,
)
from service.relay.retry import Verdict, decide

CEILING = 64
JITTER = 0.5  # what every draw of chance comes to
LATENCY = 0.05  # seconds


class Bench:
    """A flow, its time, and every state it went through."""

    def __init__(self, ceiling: int = CEILING) -> None:
        self.now = 1000.0
        self.changes: list[tuple[State, Cause | None]] = []
        self.flow = Flow(ceiling, lambda: JITTER, lambda flow: self.changes.append((flow.state, flow.cause)))

    def answer(
        self, status: int | Failure, *, sent_at: float | None = None, in_flight: int = 1, retry_after: float = 0.0
    ) -> Verdict:
        """Let a POST take its time and be answered; returns what the flow makes of it."""
        sent_at = self.now if sent_at is None else sent_at
        self.now = max(self.now, sent_at + LATENCY)
        answer = Answer(failure=status) if isinstance(status, Failure) else Answer(status)
        decision = decide(answer, 1, max_delay=300.0, random=lambda: JITTER)
        return self.flow.answered(decision, sent_at=sent_at, now=self.now, in_flight=in_flight, retry_after=retry_after)

    def wait_for_probe(self) -> float:
        """Let time pass until the next probe may go; returns how much."""
        opens_at = self.flow.opens_at(self.now)
        assert opens_at is not None
        waited, self.now = opens_at - self.now, opens_at
        assert self.flow.limit(self.now) == 1
        return waited

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return self.flow.limit(self.now)


def probing(status: int = 401) -> Bench:
    """A flow that a wrong set-up keeps from flowing."""
    bench = Bench()
    bench.answer(status)
    assert bench.flow.state is State.PROBING
    return bench


def test_it_begins_flowing_with_a_small_limit() -> None:
    bench = Bench()
    assert (bench.flow.state, bench.limit, bench.flow.is_getting_through) == (State.FLOWING, START_LIMIT, True)


def test_it_begins_below_a_ceiling_lower_than_the_usual_start() -> None:
    assert Bench(ceiling=3).limit == 3


@pytest.mark.parametrize("status", [401, 403, 404, 301, 501])
def test_an_answer_about_the_setup_begins_probing_and_keeps_the_event(status: int) -> None:
    bench = Bench()
    assert bench.answer(status) is Verdict.NAK
    assert bench.changes == [(State.PROBING, Cause.SETUP)]
    assert (bench.limit, bench.flow.target, bench.flow.answer) == (0, 1, str(status))
    assert not bench.flow.is_getting_through


def test_an_answer_about_the_setup_changes_nothing_while_others_pass() -> None:
    bench = Bench()
    sent_at = bench.now
    bench.answer(200)

    assert bench.answer(404, sent_at=sent_at) is Verdict.NAK
    assert bench.flow.state is State.FLOWING


def test_an_answer_about_the_setup_begins_probing_when_what_passed_was_sent_before() -> None:
    bench = Bench()
    bench.answer(200)
    bench.now += 1

    bench.answer(401)
    assert bench.flow.state is State.PROBING


@pytest.mark.parametrize("failure", [503, 500, 408, Failure.TIMEOUT, Failure.REFUSED, Failure.DNS])
def test_failures_in_a_row_begin_probing(failure: int | Failure) -> None:
    bench = Bench()
    for _ in range(MAX_FAILURES - 1):
        assert bench.answer(failure) is Verdict.NAK
    assert bench.flow.state is State.FLOWING

    bench.answer(failure)
    assert bench.changes == [(State.PROBING, Cause.OUTAGE)]


def test_failures_with_successes_between_them_leave_it_flowing() -> None:
    bench = Bench()
    for _ in range(5):
        for _ in range(MAX_FAILURES - 1):
            bench.answer(503)
        bench.answer(200)
    assert bench.changes == []


def test_a_few_failures_in_a_row_already_mean_that_it_is_not_getting_through() -> None:
    bench = Bench()
    for _ in range(FAILURES_TELLING):
        assert bench.flow.is_getting_through
        bench.answer(503)
    assert not bench.flow.is_getting_through

    bench.answer(200)
    assert bench.flow.is_getting_through


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_makes_it_flow_again(status: int) -> None:
    bench = probing()
    bench.wait_for_probe()

    assert bench.answer(status) is Verdict.ACK
    assert (bench.flow.state, bench.flow.cause, bench.limit) == (State.FLOWING, None, 1)


def test_a_2xx_that_was_sent_before_the_probing_makes_it_flow_again_too() -> None:
    bench = Bench()
    sent_at = bench.now
    bench.answer(401)
    assert bench.answer(200, sent_at=sent_at) is Verdict.ACK
    assert bench.flow.state is State.FLOWING


def test_an_event_refused_for_good_ends_an_outage() -> None:
    bench = Bench()
    bench.answer(200)
    for _ in range(MAX_FAILURES):
        bench.answer(503)
    bench.wait_for_probe()

    assert bench.answer(400) is Verdict.TERM
    assert bench.flow.state is State.FLOWING


def test_an_event_refused_for_good_does_not_mend_the_setup() -> None:
    bench = probing()
    bench.wait_for_probe()
    assert bench.answer(400) is Verdict.TERM
    assert bench.flow.state is State.PROBING


def test_probes_go_one_at_a_time_with_delays_that_double_up_to_a_cap() -> None:
    bench = probing()
    waits = []
    for _ in range(12):
        waits.append(bench.wait_for_probe())
        bench.answer(401)
        assert bench.limit == 0

    share = 0.5 + 0.5 * JITTER
    assert waits == pytest.approx([min(PROBE_DELAY * 2**n, MAX_PROBE_DELAY) * share for n in range(12)])


def test_what_was_in_flight_when_the_probing_began_delays_no_probe() -> None:
    # given
    bench = Bench()
    sent_at = bench.now
    bench.answer(401, sent_at=sent_at)
    opens_at = bench.flow.opens_at(bench.now)

    # when
    for status in [401, 503, 429] * 20:
        bench.answer(status, sent_at=sent_at)

    # then
    held = bench.now + SLOW_DOWN_DELAY * JITTER
    assert opens_at is not None
    assert bench.flow.opens_at(bench.now) == max(opens_at, held)


def test_a_setup_that_seems_wrong_soon_after_a_2xx_is_probed_at_once() -> None:
    # given
    bench = Bench()
    bench.answer(200)
    bench.now += 1.0

    # when one event is refused as by a wrong set-up
    bench.answer(403)

    # then the next one tells at once whether it was that event alone
    assert bench.flow.state is State.PROBING
    assert bench.limit == 1
    bench.answer(403)
    assert bench.limit == 0


def test_a_probe_waits_as_long_as_retry_after_asks() -> None:
    bench = probing()
    bench.wait_for_probe()
    bench.answer(503, retry_after=40.0)
    assert bench.wait_for_probe() == pytest.approx(40.0)


def test_something_mended_is_probed_at_once() -> None:
    bench = probing()
    bench.flow.probe_now()
    assert bench.limit == 1


def test_a_429_holds_everything_for_its_retry_after() -> None:
    bench = Bench()
    assert bench.answer(429, retry_after=7.0) is Verdict.NAK
    assert (bench.flow.state, bench.limit, bench.flow.opens_at(bench.now)) == (State.FLOWING, 0, bench.now + 7.0)
    assert bench.flow.target > 0

    bench.now += 7.0
    assert bench.limit > 0
    assert bench.flow.opens_at(bench.now) is None


def test_a_429_without_retry_after_holds_everything_for_a_moment() -> None:
    bench = Bench()
    bench.answer(429)
    assert bench.flow.opens_at(bench.now) == bench.now + SLOW_DOWN_DELAY * JITTER


def test_a_shorter_hold_does_not_end_a_longer_one() -> None:
    bench = Bench()
    bench.answer(429, retry_after=60.0)
    until = bench.flow.opens_at(bench.now)
    bench.answer(429, retry_after=1.0)
    assert bench.flow.opens_at(bench.now) == until


def test_a_429_lowers_the_limit() -> None:
    bench = Bench()
    bench.answer(429, in_flight=START_LIMIT)
    assert bench.flow.target < START_LIMIT


def test_a_round_that_used_the_whole_limit_raises_it() -> None:
    bench = Bench()
    for _ in range(START_LIMIT):
        bench.answer(200, in_flight=START_LIMIT)
    assert bench.limit > START_LIMIT


def test_the_limit_does_not_grow_while_it_is_not_the_limit() -> None:
    bench = Bench()
    for _ in range(100):
        bench.answer(200, in_flight=1)
    assert bench.limit == START_LIMIT


def test_a_hundred_refusals_with_nothing_taken_since_the_start_mean_a_wrong_setup() -> None:
    # given
    bench = Bench()
    verdicts = [bench.answer(400) for _ in range(MAX_REFUSALS)]
    assert verdicts == [Verdict.TERM] * MAX_REFUSALS
    assert bench.changes == [(State.PROBING, Cause.REFUSALS)]

    # when
    bench.wait_for_probe()

    # then the next one is kept
    assert bench.answer(400) is Verdict.NAK
    assert bench.flow.state is State.PROBING


def test_refusals_in_flight_when_the_hundredth_came_are_kept() -> None:
    bench = Bench()
    sent_at = bench.now
    verdicts = [bench.answer(422, sent_at=sent_at) for _ in range(MAX_REFUSALS + 30)]
    assert verdicts == [Verdict.TERM] * MAX_REFUSALS + [Verdict.NAK] * 30


def test_refusals_never_stop_what_took_an_event_once() -> None:
    bench = Bench()
    bench.answer(200)
    assert {bench.answer(400) for _ in range(3 * MAX_REFUSALS)} == {Verdict.TERM}
    assert bench.flow.state is State.FLOWING


def test_refusals_are_given_up_again_once_one_event_was_taken() -> None:
    bench = Bench()
    for _ in range(MAX_REFUSALS):
        bench.answer(400)
    bench.wait_for_probe()
    bench.answer(200)
    assert bench.answer(400) is Verdict.TERM


def test_a_first_day_that_also_fills_the_dead_letters_probes_on_once_they_have_room() -> None:
    # given a hundred refusals, of which the last left no room for another dead letter
    bench = Bench()
    for _ in range(MAX_REFUSALS):
        bench.answer(400)
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    bench.flow.unpause(bench.now)

    # when
    verdict = bench.answer(400)

    # then it is kept, and does not go round and round
    assert (verdict, bench.flow.state, bench.limit) == (Verdict.NAK, State.PROBING, 0)


def test_a_pause_sends_nothing_until_it_ends() -> None:
    bench = Bench()
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    assert (bench.flow.state, bench.limit, bench.flow.target) == (State.PAUSED, 0, 0)
    assert bench.flow.opens_at(bench.now) is None
    assert not bench.flow.is_getting_through

    bench.flow.unpause(bench.now)
    assert (bench.flow.state, bench.limit) == (State.FLOWING, 1)


def test_a_pause_is_not_ended_by_an_answer() -> None:
    bench = Bench()
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    for status in (200, 401, 400, 503):
        bench.answer(status)
    assert bench.flow.state is State.PAUSED


def test_pausing_twice_and_ending_no_pause_are_no_changes() -> None:
    bench = Bench()
    bench.flow.unpause(bench.now)
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    bench.flow.pause(Cause.DEAD_LETTERS_FULL)
    assert bench.changes == [(State.PAUSED, Cause.DEAD_LETTERS_FULL)]


ANSWERS = st.one_of(st.sampled_from([200, 200, 200, 400, 401, 429, 500, 503]), st.sampled_from(list(Failure)))


@given(
    ceiling=st.integers(1, 300),
    answers=st.lists(st.tuples(ANSWERS, st.floats(0, 1), st.integers(1, 300)), max_size=300),
)
def test_the_limit_is_always_between_one_and_the_ceiling(
    ceiling: int, answers: list[tuple[int | Failure, float, int]]
) -> None:
    bench = Bench(ceiling)
    for status, latency, in_flight in answers:
        bench.answer(status, sent_at=bench.now - latency, in_flight=in_flight)
        assert 1 <= bench.flow.target <= ceiling
        assert 0 <= bench.limit <= ceiling
        if bench.limit == 0:
            assert bench.flow.opens_at(bench.now) is not None


@given(answers=st.lists(ANSWERS, max_size=300))
def test_what_pointillist_took_is_acked_and_what_may_pass_is_kept(answers: list[int | Failure]) -> None:
    bench = Bench()
    for status in answers:
        verdict = bench.answer(status)
        if status == 200:
            assert verdict is Verdict.ACK
        elif status != 400:
            assert verdict is Verdict.NAK
