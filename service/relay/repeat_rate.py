"""The rate of repeats: a token bucket that fills faster while repeats pass, and slowly while none does.

However many events wait that Pointillist refuses for now, they cost it no more than `MIN_RATE`, and take no more from
the others. Pure: times are passed in, in seconds of one steady clock.
"""

MIN_RATE = 1.0  # repeats per second while none passes
MAX_RATE = 10_000.0  # repeats per second
RISE = 2.0  # factor per repeat that passed
FALL = 0.9  # factor per repeat that failed
BURST_TIME = 0.25  # seconds for which tokens are saved up; one token at least


class RepeatRate:
    """Tokens for repeats."""

    def __init__(self) -> None:
        self._rate = MIN_RATE
        self._tokens = 1.0
        self._filled_at = float("-inf")

    def available(self, now: float) -> int:
        """Repeats that may be sent now."""
        burst = max(1.0, self._rate * BURST_TIME)
        if self._filled_at != float("-inf"):
            self._tokens = min(burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return int(self._tokens)

    def available_at(self, now: float) -> float | None:
        """The time at which a repeat may be sent; None if it may be now."""
        return None if self.available(now) else now + (1.0 - self._tokens) / self._rate

    def take(self) -> None:
        """Spend a token."""
        self._tokens -= 1.0

    def give_back(self) -> None:
        """Return a token that was not used."""
        self._tokens += 1.0

    def passed(self) -> None:
        """Count a repeat that was delivered."""
        self._rate = min(MAX_RATE, self._rate * RISE)

    def failed(self) -> None:
        """Count a repeat that failed."""
        self._rate = max(MIN_RATE, self._rate * FALL)
