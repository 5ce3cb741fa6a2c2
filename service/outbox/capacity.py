"""The bounds of an outbox, and the time after which a refused caller tries again."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from service.clock import Clock
from service.errors import OutboxFullError, OutboxUnavailableError

FULL_AGAIN = 0.9  # share of a bound below which a full outbox takes events again: hysteresis, so that it does not flap
DELAY = 1.0  # seconds until a refused caller tries again, while the drain rate is unknown
MAX_DELAY = 60.0  # seconds
REFUSED_PAUSE = 1.0  # seconds after a refused write until the outbox tries the disk, or the stream, again
DISK_CHECK_INTERVAL = 0.5  # seconds between checks of the free disk space
RATE_WINDOW = 10.0  # seconds over which the drain rate is measured


@dataclass(frozen=True, slots=True)
class Bounds:
    """Maximum sizes; None for no bound."""

    events: int | None = None
    bytes: int | None = None
    disk_free: int = 0
    """Bytes to keep free on the disk."""


def repeat(error: OutboxUnavailableError) -> Callable[[float], OutboxUnavailableError]:
    """Return a function that makes the error again, given a retry_after; one raised twice would grow its traceback."""
    return partial(OutboxFullError if isinstance(error, OutboxFullError) else OutboxUnavailableError, error.reason)


class Capacity:
    """Compares the outbox with its bounds, with hysteresis: a bound once reached holds until a tenth of it is free."""

    def __init__(self, bounds: Bounds, clock: Clock, disk_free: Callable[[], int]) -> None:
        self._bounds = bounds
        self._clock = clock
        self._disk_free = disk_free
        self._disk_full = False
        self._disk_checked = float("-inf")
        self._is_full = False
        self._refused: Callable[[float], OutboxUnavailableError] | None = None
        self._drained: deque[tuple[float, int]] = deque()

    @property
    def is_refused(self) -> bool:
        """True while the disk refused a write and has taken none since."""
        return self._refused is not None

    def full(self, events: int, size: int) -> OutboxUnavailableError | None:
        """Return the error for a put while the outbox holds `events` events of `size` bytes; None below all bounds."""
        error: Callable[[float], OutboxUnavailableError] | None = None
        if (reason := self._bound_reached(events, size)) is not None:
            error = partial(OutboxFullError, reason)
        elif self._refused is not None:
            error = self._refused
        elif self._is_disk_full():
            error = partial(
                OutboxFullError, "the disk of the outbox has less free space than POINTILLIST_DISK_FREE_FLOOR"
            )
        self._is_full = error is not None
        return None if error is None else error(self.retry_after(events))

    def _bound_reached(self, events: int, size: int) -> str | None:
        bounds, share = self._bounds, FULL_AGAIN if self._is_full else 1.0
        if bounds.events is not None and events >= bounds.events * share:
            return f"the outbox holds {events} events; POINTILLIST_OUTBOX_MAX_EVENTS allows {bounds.events}"
        if bounds.bytes is not None and size >= bounds.bytes * share:
            return f"the outbox holds {size} bytes; POINTILLIST_OUTBOX_MAX_BYTES allows {bounds.bytes}"
        return None

    def _is_disk_full(self) -> bool:
        if self._bounds.disk_free <= 0:
            return False
        now = self._clock.steady()
        if now - self._disk_checked >= DISK_CHECK_INTERVAL:
            self._disk_checked = now
            floor = self._bounds.disk_free * (2 - FULL_AGAIN if self._disk_full else 1)
            with contextlib.suppress(OSError):  # a folder that cannot be asked now says nothing about its space
                self._disk_full = self._disk_free() < floor
        return self._disk_full

    def note_refused(self, error: OutboxUnavailableError) -> None:
        """Record that the disk refused a write; `full` repeats the error's kind and reason until the next success."""
        self._refused = repeat(error)

    def note_written(self) -> None:
        """Record that the disk took a write that needed space."""
        self._refused = None

    def note_drained(self, events: int) -> None:
        """Record that events left the outbox."""
        if events:
            now = self._clock.steady()
            self._drained.append((now, events))
            while self._drained[0][0] < now - RATE_WINDOW:
                self._drained.popleft()

    def retry_after(self, events: int) -> float:
        """Return the seconds until, at the measured rate, a tenth of `events` pending events is gone."""
        if len(self._drained) < 2:
            return DELAY
        seconds = self._clock.steady() - self._drained[0][0]
        rate = sum(count for _, count in self._drained) / max(seconds, 1e-3)
        return min(max(DELAY, events * (1 - FULL_AGAIN) / rate), MAX_DELAY)


class CapacityWaiters:
    """Callers that wait until a full outbox takes events again."""

    def __init__(self, full: Callable[[], OutboxUnavailableError | None]) -> None:
        """Create it on the event loop that uses it.

        Args:
            full: gives the error that a put would raise now; None while there is capacity.
        """
        self._full = full
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Have every caller check again, because events left the outbox."""
        self._changed.set()

    async def wait(self) -> None:
        """Return once there is capacity. Free disk space is noticed within DISK_CHECK_INTERVAL, without `notify`."""
        while self._full() is not None:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), DISK_CHECK_INTERVAL)
