"""Events that this process put back into a JetStream for redelivery.

JetStream itself schedules the redelivery, to any process that fetches then. Remembered here are the values that it does
not keep: the attempts, the time of the first one, and the reply subject by which to request an event early.
"""

import heapq
from typing import NamedTuple

MAX_REMEMBERED = 10_000  # events; for a forgotten one, JetStream's own count of deliveries is used
SAFE_LEAD = 1.0  # seconds before its due time until which no other process can have an event


class Note(NamedTuple):
    """The remembered values of an event."""

    reply: str
    """The reply subject for its settlement."""
    due_at: float
    """Seconds, steady."""
    attempts: int
    first_attempt_at: int | None
    """Milliseconds since the epoch."""


class Redeliveries:
    """The remembered events, by id."""

    def __init__(self) -> None:
        self._notes: dict[int, Note] = {}
        self._by_due: list[tuple[float, int]] = []

    def add(self, id_: int, note: Note) -> None:
        """Remember an event, and forget the oldest one beyond MAX_REMEMBERED."""
        if len(self._notes) >= MAX_REMEMBERED:
            del self._notes[next(iter(self._notes))]
        self._notes[id_] = note
        heapq.heappush(self._by_due, (note.due_at, id_))
        if len(self._by_due) > 2 * MAX_REMEMBERED:
            self._by_due = [(due_at, id_) for due_at, id_ in self._by_due if self._is_current(due_at, id_)]
            heapq.heapify(self._by_due)

    def take(self, id_: int) -> Note | None:
        """Remove and return the note of an event that was delivered to this process again; None if there is none."""
        return self._notes.pop(id_, None)

    def recall(self, limit: int, now: float) -> list[str]:
        """Return the reply subjects of up to `limit` events to request early, first due first; each is returned once.

        An event that is nearly due is left out: requested after another process got it, it would be delivered twice.
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
