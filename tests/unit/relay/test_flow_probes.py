"""Probes: their times, the events that they take, and the end of an outage."""

import pytest

from service.outbox.base import Pick
from service.pointillist.answer import Failure
from service.relay.concurrency import START_LIMIT
from service.relay.flow import (
    FAST_PROBES,
    MAX_PROBE_DELAY,
    PROBE_DELAY,
    Cause,
    State,
)
from service.relay.outage import FEW, QUIET_TIME
from service.relay.retry import Verdict
from tests.support.flows import JITTER, LATENCY, Bench, probing

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
