"""How much an outbox takes, and how long a refused caller should wait."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.clock import Clock

FULL_AGAIN = 0.9  # share of a bound below which a full outbox takes events again, so that it does not flutter
DELAY = 1.0  # seconds until a refused caller tries again, while the drain rate is not known
MAX_DELAY = 60.0  # seconds
REFUSED_PAUSE = 1.0  # seconds after a write that the disk refused until the outbox tries one of its own
DISK_CHECK_INTERVAL = 0.5  # seconds between looks at the free disk
RATE_WINDOW = 10.0  # seconds over which the drain rate is measured


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the outbox takes."""

    events: int | None = None
    bytes: int | None = None
    disk_free: int = 0
    """Bytes that stay free on the disk."""


class Capacity:
    """Whether there is room, with hysteresis: a bound once reached holds until a tenth of it is free again."""

    def __init__(self, bounds: Bounds, clock: Clock, disk_free: Callable[[], int]) -> None:
        self._bounds = bounds
        self._clock = clock
        self._disk_free = disk_free
        self._disk_full = False
        self._disk_checked = float("-inf")
        self.is_refused = False
        """Whether the disk refused a write and has taken none since."""
        self._full: str | None = None
        self._drained: deque[tuple[float, int]] = deque()

    def full(self, events: int, size: int) -> str | None:
        """Which bound is reached by so many events of so many bytes, in words; None where there is room."""
        bounds = self._bounds
        share = FULL_AGAIN if self._full else 1.0
        self._full = None
        if bounds.events is not None and events >= bounds.events * share:
            self._full = f"the outbox holds {events} events; POINTILLIST_OUTBOX_MAX_EVENTS allows {bounds.events}"
        elif bounds.bytes is not None and size >= bounds.bytes * share:
            self._full = f"the outbox holds {size} bytes; POINTILLIST_OUTBOX_MAX_BYTES allows {bounds.bytes}"
        elif self.is_refused:
            self._full = "the disk of the outbox refuses writes"
        elif self._is_disk_full():
            self._full = "the disk of the outbox has less free space than POINTILLIST_DISK_FREE_FLOOR"
        return self._full

    def _is_disk_full(self) -> bool:
        if self._bounds.disk_free <= 0:
            return False
        now = self._clock.steady()
        if now - self._disk_checked >= DISK_CHECK_INTERVAL:
            self._disk_checked = now
            floor = self._bounds.disk_free * (2 - FULL_AGAIN if self._disk_full else 1)
            self._disk_full = self._disk_free() < floor
        return self._disk_full

    def note_drained(self, events: int) -> None:
        """Take note that so many events left the outbox."""
        if events:
            now = self._clock.steady()
            self._drained.append((now, events))
            while self._drained[0][0] < now - RATE_WINDOW:
                self._drained.popleft()

    def retry_after(self, events: int) -> float:
        """Seconds until, at the measured rate, a tenth of so many waiting events is gone."""
        if len(self._drained) < 2:
            return DELAY
        seconds = self._clock.steady() - self._drained[0][0]
        rate = sum(count for _, count in self._drained) / max(seconds, 1e-3)
        return min(max(DELAY, events * (1 - FULL_AGAIN) / rate), MAX_DELAY)
