"""Expiry: when an event that keeps failing is given up for its age.

A stored time may be wrong, as the clock may have been when it was stored, or be wrong now. So an event is too old only
once this process has tried it for a while itself, whatever its time says.
"""

from collections import OrderedDict
from typing import NamedTuple

from service.clock import Clock
from service.outbox.base import Stored

MIN_TRIES = 5  # of this process, before an event is given up for its age
MIN_TIME = 3600.0  # seconds of tries of this process, which do as well
MAX_COUNTED = 100_000  # events whose tries are counted, some 20 MiB; others stay until there is a place


class Tries(NamedTuple):
    """The failed tries of one event by this process."""

    number: int
    first_at: float
    """Steady time, in seconds, as is `last_at`."""
    last_at: float


class Expiry:
    """Counts the failed tries of events, and decides which events are too old.

    Args:
        max_age: seconds, after an event was accepted or replayed.
        clock: measures.
    """

    def __init__(self, max_age: float, clock: Clock) -> None:
        self._max_age = max_age
        self._clock = clock
        self._tries: OrderedDict[int, Tries] = OrderedDict()  # by id; the least recently tried first

    def failed(self, stored: Stored) -> bool:
        """Count a failed try; return True if the event is too old to be tried again.

        A time of acceptance in the future counts as the first try.
        """
        now = self._clock.steady()
        tries = self._tries.pop(stored.id, None) or Tries(0, now, now)
        tries = Tries(tries.number + 1, tries.first_at, now)
        if len(self._tries) < MAX_COUNTED or self._drop_stale(now):
            self._tries[stored.id] = tries
        if tries.number < MIN_TRIES and now - tries.first_at < MIN_TIME:
            return False
        age = self._clock.corrected() - stored.queued_at / 1000
        return max(age, now - tries.first_at) > self._max_age

    def settled(self, stored: Stored) -> None:
        """Forget the tries of an event that is delivered or given up."""
        self._tries.pop(stored.id, None)

    def _drop_stale(self, now: float) -> bool:
        """Make a place by dropping an event that another replica must have settled, as it was not tried for long."""
        id_, tries = next(iter(self._tries.items()))
        if now - tries.last_at < MIN_TIME:
            return False
        del self._tries[id_]
        return True
