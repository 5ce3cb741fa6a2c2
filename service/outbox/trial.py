"""Trials of the disk: while it refuses writes, the outbox itself tries again, instead of letting each caller fail."""

from collections.abc import Callable

from service.clock import Clock, Timer
from service.outbox.capacity import REFUSED_PAUSE


class Trials:
    """Makes a trial after each pause, as long as one is needed."""

    def __init__(self, clock: Clock, *, is_needed: Callable[[], bool], make: Callable[[], None]) -> None:
        """Make none yet.

        Args:
            clock: measures the pauses.
            is_needed: returns True while trials are needed.
            make: makes one; `note` is to be called at its end.
        """
        self._clock = clock
        self._is_needed = is_needed
        self._make = make
        self._timer: Timer | None = None

    def note(self) -> None:
        """Schedule a trial if one is needed now."""
        if self._timer is None and self._is_needed():
            self._timer = self._clock.call_later(REFUSED_PAUSE, self._run)

    def stop(self) -> None:
        """Make no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._timer = None
        if self._is_needed():
            self._make()
