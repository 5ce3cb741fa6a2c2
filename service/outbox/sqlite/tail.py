"""The newest events of an outbox, still in memory, so that a relay that keeps up need not read them back."""

from collections import deque

from service.outbox.base import Stored

MAX_EVENTS = 2048
MAX_BYTES = 8 * 1024 * 1024


class TailCache:
    """While it is whole, it holds every event that was put and not fetched yet; else the store must be read.

    It is bounded: a backlog that outgrows it breaks it, and it is whole again once the store has been read to its end.
    """

    def __init__(self) -> None:
        self._events: deque[Stored] = deque()
        self._bytes = 0
        self.is_whole = False

    def append(self, stored: Stored) -> None:
        """Note an event that was committed, in the order of their ids."""
        if not self.is_whole:
            return
        self._events.append(stored)
        self._bytes += len(stored.payload)
        if len(self._events) > MAX_EVENTS or self._bytes > MAX_BYTES:
            self.forget()

    def take(self, limit: int) -> list[Stored]:
        """Take up to `limit` events, the oldest first."""
        events = self._events
        taken = [events.popleft() for _ in range(min(limit, len(events)))]
        self._bytes -= sum(len(stored.payload) for stored in taken)
        return taken

    def read_up_to(self, id_: int, *, to_end: bool) -> None:
        """Note that the store was read up to an event; `to_end`, that there was nothing behind it."""
        while self._events and self._events[0].id <= id_:
            self._bytes -= len(self._events.popleft().payload)
        self.is_whole = self.is_whole or to_end

    def forget(self) -> None:
        """Have the store read again, because there is something in it that never was here."""
        self._events.clear()
        self._bytes = 0
        self.is_whole = False
