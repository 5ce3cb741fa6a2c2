"""Events that this process put back into a JetStream for later, as far as it remembers them.

JetStream itself waits for their time and gives them to whoever fetches then. What is remembered here is what it does
not keep: how often an event was tried and since when, and the way to have it back before its time.
"""

import heapq
from typing import NamedTuple

MAX_REMEMBERED = 10_000  # events; of one that is forgotten JetStream's own count of deliveries is taken
SAFE_LEAD = 1.0  # seconds before its time until which an event is surely nobody else's


class Note(NamedTuple):
    """What is remembered of an event."""

    reply: str
    """Where JetStream wants to hear of it."""
    due_at: float
    """Seconds, steady."""
    attempts: int
    first_attempt_at: int | None
    """Milliseconds since the epoch."""


class Redeliveries:
    """The events, by their ids."""

    def __init__(self) -> None:
        self._notes: dict[int, Note] = {}
        self._by_due: list[tuple[float, int]] = []

    def add(self, id_: int, note: Note) -> None:
        """Remember an event; the one that was put back longest ago may be forgotten for it."""
        if len(self._notes) >= MAX_REMEMBERED:
            del self._notes[next(iter(self._notes))]
        self._notes[id_] = note
        heapq.heappush(self._by_due, (note.due_at, id_))
        if len(self._by_due) > 2 * MAX_REMEMBERED:
            self._by_due = [(due_at, id_) for due_at, id_ in self._by_due if self._is_current(due_at, id_)]
            heapq.heapify(self._by_due)

    def take(self, id_: int) -> Note | None:
        """What is remembered of an event that was delivered to us again."""
        return self._notes.pop(id_, None)

    def recall(self, limit: int, now: float) -> list[str]:
        """Where to ask for up to `limit` events before their time, the first due first; each is told once.

        One whose time is near is left to come by itself: asked for after another process got it, it would come twice.
        """
        replies: list[str] = []
        while self._by_due and len(replies) < limit:
            due_at, id_ = heapq.heappop(self._by_due)
            if due_at - now > SAFE_LEAD and self._is_current(due_at, id_):
                replies.append(self._notes[id_].reply)
        return replies

    def _is_current(self, due_at: float, id_: int) -> bool:
        note = self._notes.get(id_)
        return note is not None and note.due_at == due_at
