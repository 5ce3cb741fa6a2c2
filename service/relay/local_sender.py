"""The courier in the server's own process: as many lanes as may be under way.

A lane is a task that takes one event after another. It lives while there is something to send: an event that must be
tried again goes back into the outbox with its time, and holds no task, no connection and no memory.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from pointillist_destination.v1 import event_pb2
from service.clock import Clock
from service.mapping.mapping import Mapping
from service.outbox.base import Stored
from service.pointillist.client import Pointillist
from service.relay.sender import SenderHost

AHEAD = 32
"""Events that are mapped in one go. Their POSTs then leave one right after the other, so that the HTTP client's thread
handles several each time it wakes; one by one, a POST costs a fifth more."""

log = structlog.get_logger()


class LocalSender:
    """Carries events on the event loop that it is used on."""

    def __init__(self, *, mapping: Callable[[], Mapping], pointillist: Pointillist, clock: Clock) -> None:
        """Make it; nothing moves before `look`.

        Args:
            mapping: gives the mapping in force.
            pointillist: where records are POSTed.
            clock: its time.
        """
        self._mapping = mapping
        self._pointillist = pointillist
        self._clock = clock
        self._mapped: deque[tuple[Stored, bytes]] = deque()
        self._mapped_by: Mapping | None = None
        self._lanes: set[asyncio.Task[None]] = set()
        self._opening = 0  # lanes that have not begun
        self._stopping = False
        self._host: SenderHost

    @property
    def in_flight(self) -> int:
        """How many events are under way."""
        return len(self._lanes)

    @property
    def is_able(self) -> bool:
        """It always can."""
        return True

    def serve(self, host: SenderHost) -> None:
        """Work for this relay. See Courier.serve."""
        self._host = host

    def look(self) -> None:
        """Open lanes, as many as may be and have something to send."""
        for _ in range(self._host.limit() - len(self._lanes)):
            if self._stopping or not self._map(self._opening + 1):
                return
            self._opening += 1
            lane = asyncio.create_task(self._run_lane())
            self._lanes.add(lane)
            lane.add_done_callback(self._close_lane)

    async def stop(self, grace: float) -> None:
        """Let what is under way end. See Courier.stop."""
        self._stopping = True
        if self._lanes:
            _, pending = await asyncio.wait(self._lanes, timeout=grace)
            for lane in pending:
                lane.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _close_lane(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        self._host.rested()

    async def _run_lane(self) -> None:
        """Send one event after another, while no more lanes than allowed are open.

        That is asked before the first one, too: an answer may come before the next lane has begun.
        """
        host, post, steady = self._host, self._pointillist.post, self._clock.steady
        self._opening -= 1
        while not self._stopping and len(self._lanes) <= host.limit() and self._map(1):
            stored, body = self._mapped.popleft()
            try:
                sent_at = steady()
                answer = await post(body, stored.message_id)
                host.answered(stored, answer, sent_at, steady())
            except Exception:
                log.exception("unforeseen error; the event is kept and tried again", message_id=stored.message_id)
                host.failed(stored, "an unforeseen error of this service")

    def _map(self, least: int) -> bool:
        """See that so many events are mapped, by the mapping in force; returns whether they are."""
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
            except Exception:
                log.exception("unforeseen error; the event is kept and tried again", message_id=stored.message_id)
                self._host.failed(stored, "an unforeseen error of this service")
            else:
                self._mapped.append((stored, body))
