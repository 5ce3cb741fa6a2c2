"""A cache of the newest events, so that a relay that keeps up need not read them back from the file."""

from collections import deque

from service.outbox.base import Stored

MAX_EVENTS = 2048
MAX_BYTES = 8 * 1024 * 1024


class TailCache:
    """A bounded cache of the events that were put and not fetched yet.

    While `is_whole`, it holds all of them; otherwise the file must be read. A backlog that outgrows the cache empties
    it, and it is whole again once the file has been read to its end.
    """

    def __init__(self) -> None:
        self._events: deque[Stored] = deque()
        self._bytes = 0
        self.is_whole = False

    def append(self, stored: Stored) -> None:
        """Add a committed event. Called in the order of ids."""
        if not self.is_whole:
            return
        self._events.append(stored)
        self._bytes += len(stored.payload)
        if len(self._events) > MAX_EVENTS or self._bytes > MAX_BYTES:
            self.clear()

    def take(self, limit: int) -> list[Stored]:
        """Remove and return up to `limit` events, oldest first."""
        events = self._events
        taken = [events.popleft() for _ in range(min(limit, len(events)))]
        self._bytes -= sum(len(stored.payload) for stored in taken)
        return taken

    def read_up_to(self, id_: int, *, to_end: bool) -> None:
        """Drop the events up to an id, as they were read from the file; `to_end` if there were none after it."""
        while self._events and self._events[0].id <= id_:
            self._bytes -= len(self._events.popleft().payload)
        self.is_whole = self.is_whole or to_end

    def clear(self) -> None:
        """Empty the cache, because the file holds new events that were never in it."""
        self._events.clear()
        self._bytes = 0
        self.is_whole = False
