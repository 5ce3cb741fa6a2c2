"""Log lines about events that became dead letters: not one by one, as there may be very many."""

from collections import Counter

import structlog

LOG_INTERVAL = 10.0  # seconds between two lines

log = structlog.get_logger()


class DeadLetterLog:
    """Counts new dead letters by reason, and logs the counts now and then."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._logged_at = float("-inf")

    def count(self, reason: str) -> None:
        """Count a dead letter."""
        self._counts[reason] += 1

    def write(self, now: float) -> None:
        """Log the counts since the last line, if it is time; `now` is in seconds."""
        if self._counts and now - self._logged_at >= LOG_INTERVAL:
            log.warning(
                "events became dead letters",
                by_reason=dict(self._counts),
                advice="see pointillist-destination dead-letters list; replay them once the cause is fixed",
            )
            self._counts.clear()
            self._logged_at = now
