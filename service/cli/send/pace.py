"""The rate at which a file is sent, and the time that the rest takes."""

from collections import deque
from typing import NamedTuple

WINDOW = 30.0  # seconds that the rate is taken over: long enough to be steady, short enough to follow a slow server
MINUTE, HOUR = 60, 3600  # seconds


class _Look(NamedTuple):
    """The progress at one moment."""

    at: float
    events: int
    position: int


class Pace:
    """Estimates from samples of the progress; pure, as times are passed in."""

    def __init__(self, size: int | None, now: float) -> None:
        """Begin with nothing done.

        Args:
            size: bytes of the whole file; None where nobody knows.
            now: seconds, of any clock that does not go back.
        """
        self._size = size
        self._looks = deque([_Look(now, 0, 0)])

    def look(self, now: float, events: int, position: int) -> None:
        """Take in how much is done now: events that are answered, and bytes of the file that are read."""
        self._looks.append(_Look(now, events, position))
        while len(self._looks) > 2 and self._looks[1].at <= now - WINDOW:
            self._looks.popleft()

    @property
    def rate(self) -> float:
        """Events a second, of late."""
        first, last = self._looks[0], self._looks[-1]
        return (last.events - first.events) / (last.at - first.at) if last.at > first.at else 0.0

    @property
    def share(self) -> float | None:
        """Return the share of the file that is read, from 0 to 1; None if it is unknown."""
        if self._size is None:
            return None
        return min(1.0, self._looks[-1].position / self._size) if self._size else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the rest is read; None where nobody knows, as when nothing was read of late."""
        first, last = self._looks[0], self._looks[-1]
        if self._size is None or last.position <= first.position or last.at <= first.at:
            return None
        return max(0, self._size - last.position) * (last.at - first.at) / (last.position - first.position)

    def words(self) -> str:
        """Return the progress on one line, such as `37 %, 123,400 events, 8,100 events/s, 1 min 40 s left`."""
        share, left = self.share, self.seconds_left
        words = [] if share is None else [f"{int(share * 100)} %"]
        words += [f"{self._looks[-1].events:,} events", f"{self.rate:,.0f} events/s"]
        return ", ".join(words if left is None else [*words, f"{_duration(left)} left"])


def _duration(seconds: float) -> str:
    """A duration as a person estimates one: `40 s`, `1 min 40 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
