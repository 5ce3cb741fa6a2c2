"""When an event that keeps failing is given up for its age."""

import pytest

from service.outbox.base import Stored
from service.relay import expiry
from service.relay.expiry import MIN_TIME, MIN_TRIES, Expiry
from tests.support.clock import START, HandClock

MAX_AGE = 7 * 86_400.0  # seconds
YEAR = 365 * 86_400.0


def stored(id_: int = 1, queued_at: float = START) -> Stored:
    return Stored(id_, f"m-{id_}", b"", 0, round(queued_at * 1000), 0, None)


@pytest.mark.parametrize("age", [MAX_AGE + 1, 50 * YEAR])
def test_an_old_event_is_tried_five_times(age: float) -> None:
    tries = Expiry(MAX_AGE, HandClock())
    event = stored(queued_at=START - age)
    assert [tries.failed(event) for _ in range(MIN_TRIES)] == [False] * (MIN_TRIES - 1) + [True]


def test_an_old_event_is_tried_for_an_hour() -> None:
    clock = HandClock()
    tries, event = Expiry(MAX_AGE, clock), stored(queued_at=START - MAX_AGE - 1)
    assert not tries.failed(event)
    clock.move(MIN_TIME)
    assert tries.failed(event)


def test_an_event_that_is_not_old_is_never_given_up() -> None:
    tries = Expiry(MAX_AGE, HandClock())
    assert not any(tries.failed(stored()) for _ in range(100))


def test_a_time_in_the_future_counts_as_the_first_try() -> None:
    clock = HandClock()
    tries, event = Expiry(MAX_AGE, clock), stored(queued_at=START + 10 * YEAR)
    for _ in range(MIN_TRIES):
        assert not tries.failed(event)
    clock.move(MAX_AGE)
    assert not tries.failed(event)
    clock.move(1.0)
    assert tries.failed(event)


def test_tries_of_an_event_that_was_settled_do_not_count_for_another_with_its_id() -> None:
    tries, event = Expiry(MAX_AGE, HandClock()), stored(queued_at=START - 2 * MAX_AGE)
    for _ in range(MIN_TRIES - 1):
        tries.failed(event)
    tries.settled(event)
    assert not tries.failed(event)


def test_the_memory_is_bounded_and_goes_to_events_that_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    # given as many events as are counted
    monkeypatch.setattr(expiry, "MAX_COUNTED", 10)
    clock = HandClock()
    tries = Expiry(MAX_AGE, clock)
    old = [stored(number, queued_at=START - 2 * MAX_AGE) for number in range(20)]
    for event in old[:10]:
        tries.failed(event)

    # then others are not given up
    assert not any(tries.failed(event) for _ in range(10) for event in old[10:])
    assert len(tries._tries) == 10

    # but once the first are tried no longer, as another replica settled them, they are
    clock.move(MIN_TIME)
    for _ in range(MIN_TRIES - 1):
        assert not any(tries.failed(event) for event in old[10:])
    assert all(tries.failed(event) for event in old[10:])
