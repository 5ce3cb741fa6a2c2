"""The flow: its limit, rate limits, refusals, pauses and repeats, and the properties that always hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pointillist.answer import Failure
from service.relay.concurrency import START_LIMIT
from service.relay.flow import (
    MAX_REFUSALS,
    MIN_FIRST_TRIES,
    SLOW_DOWN_DELAY,
    Cause,
    Sent,
    State,
)
from service.relay.retry import Verdict
from tests.support.flows import JITTER, Bench


def test_it_begins_flowing_with_a_small_limit() -> None:
    bench = Bench()
    assert (bench.flow.state, bench.limit, bench.flow.is_getting_through(bench.now)) == (
        State.FLOWING,
        START_LIMIT,
        True,
    )


def test_it_begins_below_a_ceiling_lower_than_the_usual_start() -> None:
    assert Bench(ceiling=3).limit == 3


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
