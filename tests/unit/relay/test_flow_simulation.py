"""The flow against a simulated Pointillist, in virtual time; `python -m tests.unit.relay.simulation` runs the grid."""

import random

import pytest

from service.pointillist.answer import Answer, Failure
from tests.support.sizes import sized
from tests.unit.relay.simulation import CEILING, Cell, Event, Outage, Server, Simulation, run

# -- the limit finds the knee of a server


@pytest.mark.parametrize("latency", [0.02, 0.1])
@pytest.mark.parametrize("knee", [10, 40, 120])
def test_the_limit_settles_within_a_quarter_of_the_servers_knee(knee: int, latency: float) -> None:
    assert Server(knee, latency).settled_limit() == pytest.approx(knee, rel=0.25)


@pytest.mark.parametrize("knee", [40, 120])
def test_the_limit_settles_by_503s_alone(knee: int) -> None:
    assert Server(knee, 0.05, is_rising=False).settled_limit() == pytest.approx(knee, rel=0.25)


def test_the_limit_settles_above_a_low_knee_that_only_503s_show() -> None:
    assert 8 <= Server(10, 0.05, is_rising=False).settled_limit() <= 24


@pytest.mark.parametrize("knee", [10, 40, 120])
def test_the_limit_settles_by_latency_alone(knee: int) -> None:
    assert Server(knee, 0.1, is_refusing=False).settled_limit() == pytest.approx(knee, rel=0.25)


@pytest.mark.parametrize("steady", [0.0, 0.05, 0.3])
def test_without_a_knee_the_limit_grows_to_the_ceiling_whatever_share_fails(steady: float) -> None:
    assert Server(float("inf"), 0.1, steady=steady).settled_limit(round_trips=sized(100, 600)) == CEILING


@pytest.mark.parametrize("steady", [0.05, 0.3])
def test_a_knee_is_found_beside_a_steady_share_of_failures(steady: float) -> None:
    assert Server(40, 0.05, steady=steady).settled_limit() == pytest.approx(40, rel=0.25)


# -- events that fail do not stop the others


@pytest.mark.parametrize(
    "cell",
    [
        Cell(0.02, 50, 500, 0.005, 0.005, seconds=300),
        Cell(0.2, 50, 500, 0.005, 0.005, onset=60, seconds=300),
        Cell(0.2, 50, 429, 0.5, 0.5, seconds=300),
        Cell(0.8, 5, 500, 0.005, 10, onset=60),
        Cell(0.95, 5, 403, 0.005, 10),
        Cell(0.8, 5, 403, 0.5, 0.5, has_passed=False),
        Cell(0.0, 50, 403, 0.02, 0.02, burst=20, seconds=120),
        Cell(0.0, 20, 500, 0.005, 10, onset=60, burst=2000),
        Cell(0.0, 50, 500, 0.005, 0.005, burst=40, has_passed=False, seconds=120),
    ],
    ids=str,
)
def test_events_that_fail_do_not_stop_the_others(cell: Cell) -> None:
    outcome = run(cell)
    assert outcome.delivered >= 0.9 * outcome.possible
    assert outcome.late <= 60
    assert outcome.repeats_a_minute <= 75


@pytest.mark.parametrize("tried", [100, 5000])
def test_after_a_restart_events_that_failed_before_do_not_stop_the_others(tried: int) -> None:
    # given
    chance = random.Random(1)
    good = [Event(tried + number, number / 20, is_bad=False) for number in range(2000)]
    simulation = Simulation(lambda _, event, __: (0.02, Answer(403 if event.is_bad else 200)), good, chance)
    simulation.put_back([Event(number, 0.0, is_bad=True, attempts=3) for number in range(tried)])

    # when
    simulation.run(100)

    # then
    assert all(event.delivered_at is not None and event.delivered_at - event.at < 5 for event in good[:-5])
    assert sum(is_repeat for _, is_repeat in simulation.posts) <= 125


@pytest.mark.parametrize("status", [403, 500])
@pytest.mark.parametrize("bad", [1, 2, 5])
def test_a_good_event_behind_a_few_that_all_failed_is_delivered_within_a_minute(bad: int, status: int) -> None:
    events = [*(Event(number, 0.0, is_bad=True) for number in range(bad)), Event(bad, 400.0, is_bad=False)]
    Simulation(
        lambda _, event, __: (0.005, Answer(status if event.is_bad else 200)),
        events,
        random.Random(1),
        has_passed=False,
    ).run(470)
    assert (events[-1].delivered_at or 1e9) - 400 <= 60


# -- an outage is recognised, costs little, and its end is found


@pytest.mark.parametrize(
    "outage",
    [
        Outage(1, 400, Answer(503), 0.05),
        Outage(1, 400, Answer(401), 0.05),
        Outage(1, 400, Answer(failure=Failure.TIMEOUT), 10),
        Outage(0, 400, Answer(failure=Failure.TIMEOUT), 10, has_passed=False),
        Outage(0, 400, Answer(401), 0.05, has_passed=False),
    ],
    ids=str,
)
def test_an_outage_is_recognised_soon_and_costs_little_and_its_end_is_found(outage: Outage) -> None:
    seen = outage.run()
    assert seen.after <= 35
    assert seen.posts <= (2 * CEILING + 200 if outage.has_passed else 50)
    assert seen.a_minute[0] <= 80
    assert max(seen.a_minute[1:]) <= 6
    assert seen.back <= 35
