"""The evidence of an outage or a wrong set-up: failures of several events, sent after the last 2xx."""

import pytest

from service.pointillist.answer import Failure
from service.relay.flow import (
    MAX_REFUSALS,
    SUSPICION,
    SUSPICION_TIME,
    Cause,
    State,
)
from service.relay.outage import ALL_POSTS, ALL_TIME, ALL_TIME_FIRST, ENOUGH, FEW, QUIET_TIME
from service.relay.retry import Verdict
from tests.support.flows import LATENCY, Bench

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
