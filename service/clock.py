"""Time, as a parameter of every part that reads a clock or waits."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

TOLERANCE = 1.0  # seconds by which the system's clock may differ
SETTLING = 60.0  # seconds for which it must differ by the same, before it is followed

log = structlog.get_logger()


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """See that it does not come."""


class Clock(Protocol):
    """A clock; one is the system's, another the tests move by hand."""

    def wall(self) -> float:
        """Seconds since the epoch by the system's clock, which may jump; for times that people read."""

    def steady(self) -> float:
        """Seconds since the epoch, read once at start and never jumping after; for durations."""

    def corrected(self) -> float:
        """Seconds since the epoch; to be stored, and compared with stored times.

        It does not jump with the system's clock, but follows it once that has stayed where it jumped to: a clock that
        was wrong at start is corrected, and a machine that was suspended is too.
        """

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Have the running event loop call after that many seconds of steady time."""


class SystemClock:
    """The system's clock."""

    def __init__(self) -> None:
        self._offset = self._corrected = time.time() - time.monotonic()
        self._differs = 0.0  # seconds by which the system's clock was last seen to differ
        self._differs_since = time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch by the system's clock."""
        return time.time()

    def steady(self) -> float:
        """Seconds since the epoch as it was at start, plus the time since, whatever the system's clock did."""
        return self._offset + time.monotonic()

    def corrected(self) -> float:
        """Seconds since the epoch; see Clock.corrected. Called from any thread."""
        monotonic = time.monotonic()
        differs = time.time() - monotonic - self._corrected
        if abs(differs) <= TOLERANCE or abs(differs - self._differs) > TOLERANCE:
            self._differs, self._differs_since = differs, monotonic
        elif monotonic - self._differs_since >= SETTLING:
            self._corrected += differs
            self._differs = 0.0
            log.warning("system clock was set; following it", seconds=round(differs, 1))
        return self._corrected + monotonic

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Have the running event loop call."""
        return asyncio.get_running_loop().call_later(seconds, callback)
