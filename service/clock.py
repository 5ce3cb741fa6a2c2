"""Time, as a parameter of every part that reads a clock or waits."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """See that it does not come."""


class Clock(Protocol):
    """A clock; one is the system's, another the tests move by hand."""

    def wall(self) -> float:
        """Seconds since the epoch by the system's clock, which may jump; for times that people read."""

    def steady(self) -> float:
        """Seconds since the epoch, read once at start and never jumping after; for ages and due times."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Have the running event loop call after that many seconds of steady time."""


class SystemClock:
    """The system's clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch by the system's clock."""
        return time.time()

    def steady(self) -> float:
        """Seconds since the epoch as it was at start, plus the time since, whatever the system's clock did."""
        return self._offset + time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Have the running event loop call."""
        return asyncio.get_running_loop().call_later(seconds, callback)
