"""A caller's rate: a bucket of tokens that fills steadily, and that a batch may overdraw."""

from collections.abc import Callable


class TokenBucket:
    """So many events a second, and a burst of more after a quiet time.

    A single event is refused while the bucket is empty. A batch that is read already is never refused: it overdraws
    the bucket, and nothing more is read before the debt is filled.
    """

    def __init__(self, per_second: float, burst: float, now: Callable[[], float]) -> None:
        """Make it full.

        Args:
            per_second: events that flow in each second.
            burst: events that it holds.
            now: seconds, steady.
        """
        self.per_second = per_second
        self.burst = burst
        self._now = now
        self._level = burst
        self._at = now()

    def take(self) -> float:
        """Take one event's worth; returns 0, or for how many seconds there is none, and then nothing is taken."""
        self._fill()
        if self._level < 1:
            return (1 - self._level) / self.per_second
        self._level -= 1
        return 0.0

    def charge(self, events: int) -> None:
        """Take that much whether it is there or not."""
        self._fill()
        self._level -= events

    def debt(self) -> float:
        """Return the seconds until an overdraft is refilled; 0 if there is none."""
        self._fill()
        return max(0.0, -self._level / self.per_second)

    def _fill(self) -> None:
        now = self._now()
        self._level = min(self.burst, self._level + (now - self._at) * self.per_second)
        self._at = now
