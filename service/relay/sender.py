"""Senders: map each event, POST its record and report the answer.

There are two, both driven by the relay, their `SenderHost`.

    Sender (Protocol)
    ├── LocalSender    local_sender.py: in this process
    └── WorkerPool     worker_pool.py: in processes of its own
"""

from typing import Protocol

from service.outbox.base import Stored
from service.pointillist.answer import Answer


class SenderHost(Protocol):
    """The host of a sender: the relay in the server, the server in a worker."""

    def limit(self) -> int:
        """Return the number of events that may be in flight now."""

    def take(self, most: int) -> list[Stored]:
        """Return up to `most` events to send; each is answered, failed, lost or given back once."""

    def sending(self, stored: Stored, now: float) -> None:
        """Note that an event is about to be POSTed; `now` is in the clock's steady seconds."""

    def answered(self, stored: Stored, answer: Answer, sent_at: float, now: float) -> None:
        """Handle the answer to an event.

        Args:
            stored: the event.
            answer: the answer to its POST.
            sent_at: the time of the POST, in the clock's steady seconds.
            now: the time of the answer, in the same.
        """

    def failed(self, stored: Stored, why: str) -> None:
        """Handle an event that was not delivered because of an error of this service, which may well recur."""

    def unreadable(self, stored: Stored) -> None:
        """Handle an event whose stored bytes do not parse, so that it can never be sent."""

    def lost(self, stored: Stored, why: str) -> None:
        """Handle an event whose worker ended; it may have been POSTed."""

    def rested(self) -> None:
        """Note that fewer events are in flight than before."""


class Sender(Protocol):
    """Sends events within the host's limit, and reports their answers."""

    @property
    def in_flight(self) -> int:
        """Events in flight."""

    @property
    def is_able(self) -> bool:
        """True while it can send."""

    def serve(self, host: SenderHost) -> None:
        """Send for this host; called once, before anything else."""

    def wake(self) -> None:
        """Take events, if there are any and the limit allows it."""

    def give_back(self) -> list[Stored]:
        """Return the events that were taken and are not POSTed yet; they are no longer the sender's."""

    async def stop(self, grace: float) -> None:
        """Take nothing new; wait `grace` seconds for POSTs in flight, then leave their events to the next start."""
