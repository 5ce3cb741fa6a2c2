"""The sender in the server's own process: one task per POST in flight.

A task sends one event after another. It lives while there are events to send: one that must be tried again goes back
into the outbox with its due time, and holds no task, no connection and no memory.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from google.protobuf.message import DecodeError

from pointillist_destination.v1 import event_pb2
from service.clock import Clock
from service.mapping.mapping import Mapping
from service.outbox.base import Stored
from service.pointillist.client import Pointillist
from service.relay.sender import SenderHost

AHEAD = 32
"""Events that are mapped in one go. Their POSTs then leave one right after the other, so that the HTTP client's thread
handles several each time it wakes; one by one, a POST costs a fifth more."""
UNEXPECTED = "an unexpected error of this service"

log = structlog.get_logger()


class LocalSender:
    """Sends events on the event loop that it is used on.

    Args:
        mapping: returns the mapping in force.
        pointillist: receives the records.
        clock: measures the POSTs.
    """

    def __init__(self, *, mapping: Callable[[], Mapping], pointillist: Pointillist, clock: Clock) -> None:
        self._mapping = mapping
        self._pointillist = pointillist
        self._clock = clock
        self._mapped: deque[tuple[Stored, bytes]] = deque()
        self._mapped_by: Mapping | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0  # tasks that have not run yet
        self._stopping = False
        self._host: SenderHost

    @property
    def in_flight(self) -> int:
        """Events in flight."""
        return len(self._tasks)

    @property
    def is_able(self) -> bool:
        """Always True."""
        return True

    def serve(self, host: SenderHost) -> None:
        """Send for this host. See Sender.serve."""
        self._host = host

    def wake(self) -> None:
        """Start as many tasks as the limit allows and there are events for."""
        for _ in range(self._host.limit() - len(self._tasks)):
            if self._stopping or not self._map(self._starting + 1):
                return
            self._starting += 1
            task = asyncio.create_task(self._run_task())
            self._tasks.add(task)
            task.add_done_callback(self._end_task)

    def give_back(self) -> list[Stored]:
        """Return the events that are mapped and that no task is about to POST. See Sender.give_back."""
        return [self._mapped.pop()[0] for _ in range(len(self._mapped) - self._starting)]

    async def stop(self, grace: float) -> None:
        """Wait for POSTs in flight, then cancel them. See Sender.stop."""
        self._stopping = True
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=grace)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._host.rested()

    async def _run_task(self) -> None:
        """Send one event after another, while there are no more tasks than the limit.

        The limit is checked before the first one, too: an answer may come before a new task runs.
        """
        host, post, steady = self._host, self._pointillist.post, self._clock.steady
        self._starting -= 1
        while not self._stopping and len(self._tasks) <= host.limit() and self._map(1):
            stored, body = self._mapped.popleft()
            try:
                sent_at = steady()
                host.sending(stored, sent_at)
                answer = await post(body, stored.message_id)
                host.answered(stored, answer, sent_at, steady())
            except Exception:
                log.exception("unexpected error; the event is kept and tried again", message_id=stored.message_id)
                host.failed(stored, UNEXPECTED)

    def _map(self, least: int) -> bool:
        """Map events, by the mapping in force, until there are `least`; return False if there are not so many."""
        mapping = self._mapping()
        if mapping is not self._mapped_by:
            old = [stored for stored, _ in self._mapped]
            self._mapped.clear()
            self._mapped_by = mapping
            self._encode(mapping, old)
        while len(self._mapped) < least:
            taken = self._host.take(AHEAD)
            if not taken:
                return False
            self._encode(mapping, taken)
        return True

    def _encode(self, mapping: Mapping, events: Sequence[Stored]) -> None:
        for stored in events:
            try:
                body = mapping.encode(event_pb2.Event.FromString(stored.payload), stored.accepted_at)
            except DecodeError:
                self._host.unreadable(stored)
            except Exception:
                log.exception("unexpected error; the event is kept and tried again", message_id=stored.message_id)
                self._host.failed(stored, UNEXPECTED)
            else:
                self._mapped.append((stored, body))
