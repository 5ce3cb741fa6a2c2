"""The time that is stored: steady, but corrected once the system's clock was set."""

import time

import pytest

from service.clock import SETTLING, SystemClock

DAY = 86_400.0


class Times:
    """The system's clocks, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic = 1_800_000_000.0, 50.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic)

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


@pytest.mark.parametrize("jump", [-30 * DAY, -5.0, 5.0, 50 * 365 * DAY])
def test_a_clock_that_was_set_is_followed_after_a_minute(times: Times, jump: float) -> None:
    # given
    clock = SystemClock()
    times.move(10.0)
    before = clock.corrected()
    assert before == pytest.approx(times.wall)

    # when
    times.wall += jump
    for _ in range(6):
        assert clock.corrected() == pytest.approx(times.wall - jump)
        times.move(SETTLING / 6)

    # then
    assert clock.corrected() == pytest.approx(times.wall)
    assert clock.steady() == pytest.approx(times.wall - jump)


def test_a_clock_that_jumps_back_and_forth_is_not_followed(times: Times) -> None:
    clock = SystemClock()
    for jump in (DAY, -DAY) * 10:
        times.wall += jump
        times.move(SETTLING / 2)
        assert abs(clock.corrected() - clock.steady()) < 0.001


def test_a_clock_that_is_adjusted_little_by_little_is_followed_in_the_end(times: Times) -> None:
    clock = SystemClock()
    for _ in range(1000):
        times.wall += 0.05
        times.move(10.0)
        clock.corrected()
    assert abs(clock.corrected() - times.wall) < 3.0
