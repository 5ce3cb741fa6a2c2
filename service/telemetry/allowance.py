"""How many log lines of one kind there may be: some at once, and then so many a second."""


class Allowance:
    """The lines that are left.

    Args:
        most: lines at once.
        per_second: lines a second, in the long run.
        now: seconds, steady.
    """

    __slots__ = ("_at", "_left", "_most", "_per_second", "suppressed")

    def __init__(self, most: int, per_second: float, now: float) -> None:
        self._most = most
        self._per_second = per_second
        self._left = float(most)
        self._at = now
        self.suppressed = 0
        """Lines that were left out since the last one; whoever writes a line takes them with `told`."""

    def take(self, now: float) -> bool:
        """Take a line; returns False where none is left, and counts it."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            self.suppressed += 1
            return False
        self._left -= 1
        return True

    def told(self) -> int:
        """Return how many were left out, and begin to count again."""
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed
