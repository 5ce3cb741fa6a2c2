from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pointillist.answer import Answer, Failure
from service.relay.retry import FIRST_DELAY, RetryDecision, Verdict, decide

MAX_DELAY = 300.0  # seconds

STATUSES = range(100, 600)

TRIED_AGAIN = {408, 409, 425, 429, *range(500, 600)} - {501}
SETUP = {*range(300, 400), 401, 402, 403, 404, 405, 407, 410, 421, 426, 501}


def always(number: float) -> Callable[[], float]:
    return lambda: number


def decided(answer: Answer, attempts: int = 1, *, max_delay: float = MAX_DELAY, random: float = 0.5) -> RetryDecision:
    return decide(answer, attempts, max_delay=max_delay, random=always(random))


def expected_verdict(status: int) -> Verdict:
    if 200 <= status <= 299:
        return Verdict.ACK
    if status in SETUP:
        return Verdict.SETUP
    if 400 <= status <= 499 and status not in TRIED_AGAIN:
        return Verdict.TERM
    return Verdict.NAK


def test_every_status_gets_the_verdict_of_the_table() -> None:
    verdicts = {status: decided(Answer(status)).verdict for status in STATUSES}

    assert verdicts == {status: expected_verdict(status) for status in STATUSES}


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_a_status_that_means_nothing_loses_no_event(status: int) -> None:
    assert decided(Answer(status)).verdict is Verdict.NAK


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_is_tried_again_and_named(failure: Failure) -> None:
    decision = decided(Answer(failure=failure))
    assert (decision.verdict, decision.reason) == (Verdict.NAK, failure.value)


def test_an_answer_of_nothing_is_tried_again() -> None:
    decision = decided(Answer())
    assert (decision.verdict, decision.reason) == (Verdict.NAK, "other")


def test_only_429_slows_the_whole_relay() -> None:
    assert {status for status in STATUSES if decided(Answer(status)).slow_down} == {429}


def test_429_and_every_5xx_that_is_tried_again_are_signs_of_overload() -> None:
    assert {status for status in STATUSES if decided(Answer(status)).overload} == {429, *range(500, 600)} - {501}


@pytest.mark.parametrize("failure", Failure)
def test_of_the_failures_only_a_timeout_is_a_sign_of_overload(failure: Failure) -> None:
    assert decided(Answer(failure=failure)).overload is (failure is Failure.TIMEOUT)


@pytest.mark.parametrize(("status", "reason"), [(200, "2xx"), (204, "2xx"), (302, "302"), (400, "400"), (503, "503")])
def test_the_reason_is_the_status_and_one_word_for_all_successes(status: int, reason: str) -> None:
    assert decided(Answer(status)).reason == reason


@pytest.mark.parametrize("status", [200, 400])
def test_what_is_settled_for_good_waits_for_nothing(status: int) -> None:
    assert decided(Answer(status, retry_after=60.0), attempts=9).delay == 0.0


@pytest.mark.parametrize(("attempts", "longest"), [(1, 0.5), (2, 1.0), (3, 2.0), (10, 256.0), (11, 300.0), (12, 300.0)])
def test_the_longest_wait_doubles_up_to_the_cap(attempts: int, longest: float) -> None:
    assert decided(Answer(503), attempts, random=1.0).delay == longest


@pytest.mark.parametrize("status", [503, 401])
def test_the_jitter_is_full(status: int) -> None:
    assert [decided(Answer(status), 4, random=random).delay for random in (0.0, 0.25, 0.5)] == [0.0, 1.0, 2.0]


def test_retry_after_is_waited_for_and_the_jitter_goes_on_top() -> None:
    assert decided(Answer(429, retry_after=30.0), 2, random=0.5).delay == 30.5


def test_retry_after_is_honoured_up_to_the_cap() -> None:
    assert decided(Answer(429, retry_after=86_400.0), random=0.9).delay == MAX_DELAY


@given(
    status=st.none() | st.integers(min_value=100, max_value=599),
    attempts=st.integers(min_value=1, max_value=10**30),
    retry_after=st.none() | st.floats(min_value=0.0, allow_nan=False),
    max_delay=st.floats(min_value=0.0, max_value=1e9),
    random=st.floats(min_value=0.0, max_value=1.0, exclude_max=True),
)
def test_a_delay_is_never_negative_nor_over_the_cap_nor_under_a_retry_after_within_it(
    status: int | None, attempts: int, retry_after: float | None, max_delay: float, random: float
) -> None:
    # given any answer
    answer = Answer(status, None if status else Failure.RESET, retry_after)
    # when it is decided on
    decision = decided(answer, attempts, max_delay=max_delay, random=random)
    # then its delay keeps its bounds
    assert 0.0 <= decision.delay <= max_delay
    if decision.verdict in (Verdict.NAK, Verdict.SETUP):
        assert decision.delay >= min(retry_after or 0.0, max_delay)
        assert decision.delay <= (retry_after or 0.0) + FIRST_DELAY * 2.0 ** min(attempts - 1, 64)
