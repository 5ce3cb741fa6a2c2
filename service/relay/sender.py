"""Who carries events to Pointillist: maps each, POSTs its record and brings the answer back.

There are two, and the relay tells both what to do, as their `SenderHost`.

    Courier (Protocol)
    ├── Lanes      local_sender.py: in this process
    └── Workers    worker_pool.py: in processes of their own
"""

from typing import Protocol

from service.outbox.base import Stored
from service.pointillist.answer import Answer


class SenderHost(Protocol):
    """What a courier is told, and whom it tells: the relay."""

    def limit(self) -> int:
        """How many events may be under way now."""

    def take(self, most: int) -> list[Stored]:
        """Up to `most` events to be sent, oldest first; each is answered or failed once."""

    def answered(self, stored: Stored, answer: Answer, sent_at: float, now: float) -> None:
        """An event was POSTed.

        Args:
            stored: the event.
            answer: what it came to.
            sent_at: when it was found that it may be sent, in the clock's steady seconds.
            now: when the answer came, in the same.
        """

    def failed(self, stored: Stored, why: str) -> None:
        """An event came to nothing by a fault of ours that it may well meet again."""

    def lost(self, stored: Stored, why: str) -> None:
        """What carried an event has ended; it may have been POSTed."""

    def rested(self) -> None:
        """Fewer events are under way than before."""


class Sender(Protocol):
    """Takes events while it may, and brings back what came of them."""

    @property
    def in_flight(self) -> int:
        """How many events are under way."""

    @property
    def is_able(self) -> bool:
        """Whether it can carry anything just now."""

    def serve(self, host: SenderHost) -> None:
        """Work for this relay; call once, before anything else."""

    def look(self) -> None:
        """There may be something to take, or room for more under way."""

    async def stop(self, grace: float) -> None:
        """Take nothing new; let what is under way end for `grace` seconds, then leave it to the next start."""
