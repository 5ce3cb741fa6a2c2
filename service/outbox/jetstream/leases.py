"""Events that JetStream has leased to this process, and their settlement.

Settlements are collected for a moment and sent together. Only the last is confirmed by JetStream, which executes them
in order, so all of them are. A dead letter is in its stream before its event is settled: after a crash in between it is
written again, once, and nothing is lost.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
import structlog

from service.errors import OutboxClosedError, OutboxUnavailableError
from service.outbox.base import Refusal, Stored
from service.outbox.jetstream.connection import INBOX, Connection, Received
from service.outbox.jetstream.headers import ANSWER_TO, delivery_of, stored_of
from service.outbox.jetstream.publisher import Message, Publisher
from service.outbox.jetstream.redelivery import Note, Redeliveries

LINGER = 0.005  # seconds that settlements wait for more
EXTENSIONS = 3  # how often a lease is extended before it would end
STUCK_PAUSE = 1.0  # seconds until failed settlements are retried
ENDED = "settlements are not sent any more: the server is about to end"
ACK, NAK, TERM, IN_PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"

log = structlog.get_logger()


@dataclass(slots=True)
class Lease:
    """An event that is leased to this process."""

    stored: Stored
    reply: str
    """The reply subject for its settlement; empty if its stream no longer exists."""
    stored_at: int
    """Milliseconds since the epoch, by the clock of NATS; an event with the same id in a new stream has another."""
    answer_to: str
    """The subject on which to report its delivery; empty if no caller waits for it."""
    extended_at: float
    """Seconds of the event loop's time: when the lease was last extended."""


@dataclass(slots=True)
class Settlement:
    """The settlement of an event."""

    lease: Lease
    verb: bytes
    refusal: Refusal | None = None
    letter: Message | None = None
    """The dead letter to publish first; None once it is published."""


class Leases:
    """The events that are leased to this process."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        *,
        letter_subject: Callable[[str], str],
        gone: Callable[[Sequence[Settlement]], None],
    ) -> None:
        """Create it; `run` sends the settlements.

        Args:
            connection: to NATS.
            publisher: publishes dead letters.
            letter_subject: returns the subject of a dead letter, by its message_id.
            gone: called with the settlements of events that have left the stream.
        """
        self._connection = connection
        self._publisher = publisher
        self._letter_subject = letter_subject
        self._gone = gone
        self._leases: dict[int, Lease] = {}
        self._redeliveries = Redeliveries()
        self._queue: list[Settlement] = []
        self._sending: list[Settlement] = []
        self._flushes: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()
        self._has_ended = False

    @property
    def unsettled(self) -> int:
        """Number of settlements not sent yet."""
        return len(self._queue)

    @property
    def coming_letters(self) -> int:
        """Number of dead letters among the settlements that are queued or being sent."""
        return sum(settlement.refusal is not None for settlement in (*self._queue, *self._sending))

    # -- leases

    def take(self, received: Received) -> Stored | None:
        """Lease an event that was delivered; return None if this process has it already, and the lease had ended."""
        delivery = delivery_of(received.reply)
        now = asyncio.get_running_loop().time()
        if (lease := self._leases.get(delivery.id)) is not None:
            if lease.stored_at == delivery.stored_at:
                lease.reply, lease.extended_at = received.reply, now
                return None
            self.discard_all()
        stored = stored_of(received, delivery)
        if (note := self._redeliveries.take(stored.id)) is not None:
            stored = stored._replace(attempts=note.attempts, first_attempt_at=note.first_attempt_at)
        answer_to = (received.headers or {}).get(ANSWER_TO, "")
        self._leases[stored.id] = Lease(stored, received.reply, delivery.stored_at, answer_to, now)
        return stored

    def discard_all(self) -> None:
        """Discard all leases: the stream was created again, and its ids are those of other events."""
        log.warning("stream of pending events was created again", leased_from_old_stream=len(self._leases))
        for lease in (*self._leases.values(), *(settlement.lease for settlement in self._queue)):
            lease.reply = ""
        self._leases.clear()
        self._redeliveries = Redeliveries()

    def _lease_of(self, stored: Stored) -> Lease | None:
        """Return the lease of exactly this event; None if it is no longer held."""
        lease = self._leases.get(stored.id)
        return lease if lease is not None and lease.stored == stored else None

    def ack(self, stored: Stored) -> None:
        """Settle as delivered."""
        if (lease := self._lease_of(stored)) is not None:
            self._settle(Settlement(lease, ACK))

    def nak(self, stored: Stored, delay: float, *, now: int, attempted: bool) -> None:
        """Settle for redelivery in `delay` seconds; `now` is in milliseconds."""
        if (lease := self._lease_of(stored)) is None:
            return
        del self._leases[stored.id]  # now, as it may be delivered again before the settlement is confirmed
        due_at = asyncio.get_running_loop().time() + delay
        first_attempt_at = stored.first_attempt_at or (now if attempted else None)
        self._redeliveries.add(stored.id, Note(lease.reply, due_at, stored.attempts + attempted, first_attempt_at))
        verb = NAK if delay <= 0 else NAK + b" " + orjson.dumps({"delay": round(delay * 1e9)})
        self._settle(Settlement(lease, verb))

    def term(self, stored: Stored, refusal: Refusal, letter: Message) -> None:
        """Settle as given up, once the dead letter is published."""
        if (lease := self._lease_of(stored)) is not None:
            self._settle(Settlement(lease, TERM, refusal, letter))

    def _settle(self, settlement: Settlement) -> None:
        self._queue.append(settlement)
        self._work.set()

    async def recall(self, limit: int) -> bool:
        """Request up to `limit` events before their redelivery is due; return True if there are any."""
        await self.flush()
        replies = self._redeliveries.recall(limit, asyncio.get_running_loop().time())
        await self._send([(reply, NAK) for reply in replies])
        return bool(replies)

    async def release_all(self) -> None:
        """Release every lease at once, so that other processes get the events."""
        await self._send([(lease.reply, NAK) for lease in self._leases.values()])
        self._leases.clear()

    async def extend(self, ack_wait: float) -> None:
        """Extend the leases that would end soon.

        Args:
            ack_wait: seconds after which JetStream would lease an event to another process.
        """
        now = asyncio.get_running_loop().time()
        for lease in list(self._leases.values()):
            if now - lease.extended_at >= ack_wait / EXTENSIONS:
                await self._connection.publish(lease.reply, IN_PROGRESS)
                lease.extended_at = now

    async def flush(self) -> None:
        """Return once every settlement made before is confirmed.

        Raises:
            OutboxUnavailableError: JetStream could not be reached; the settlements are retried.
            OutboxClosedError: the outbox is being closed.
        """
        if self._has_ended:
            raise OutboxClosedError(ENDED, STUCK_PAUSE)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append(future)
        self._work.set()
        await future

    # -- sending

    async def run(self) -> None:
        """Send settlements until cancelled."""
        flushes: list[asyncio.Future[None]] = []
        try:
            while True:
                await self._work.wait()
                if not self._flushes:
                    await asyncio.sleep(LINGER)
                self._work.clear()
                self._sending = queue = self._queue
                self._queue = []
                flushes, self._flushes = self._flushes, []
                try:
                    await self._write(queue)
                except OutboxUnavailableError as error:
                    # A repeated nak could take the event from another process; the lease ends without it.
                    self._queue[:0] = [settlement for settlement in queue if not settlement.verb.startswith(NAK)]
                    self._sending = []
                    _end(flushes, error)
                    await asyncio.sleep(STUCK_PAUSE)
                    self._work.set()
                else:
                    self._sending = []
                    _end(flushes, None)
        finally:
            self._has_ended = True  # so that nobody waits for a flush forever
            _end([*flushes, *self._flushes], OutboxClosedError(ENDED, STUCK_PAUSE))

    async def _write(self, queue: list[Settlement]) -> None:
        """Send settlements, and leave in `queue` those whose dead letter could not be published.

        Raises:
            OutboxUnavailableError: some settlements could not be sent.
        """
        problem = await self._write_letters([settlement for settlement in queue if settlement.letter is not None])
        ready = [settlement for settlement in queue if settlement.letter is None]
        await self._send([(settlement.lease.reply, settlement.verb) for settlement in ready])
        final = [settlement for settlement in ready if not settlement.verb.startswith(NAK)]
        for settlement in final:
            if self._leases.get(settlement.lease.stored.id) is settlement.lease:
                del self._leases[settlement.lease.stored.id]
            await self._report(settlement)
        self._gone(final)
        if problem is not None:
            queue[:] = [settlement for settlement in queue if settlement.letter is not None]
            raise problem

    async def _write_letters(self, terms: list[Settlement]) -> OutboxUnavailableError | None:
        """Publish dead letters, each in its own call, so that a failure does not repeat the others."""
        results = await asyncio.gather(*map(self._write_letter, terms))
        return next((result for result in results if result is not None), None)

    async def _write_letter(self, term: Settlement) -> OutboxUnavailableError | None:
        assert term.letter is not None
        try:
            await self._publisher.publish(self._letter_subject(term.lease.stored.message_id), [term.letter])
        except OutboxUnavailableError as error:
            return error
        term.letter = None
        return None

    async def _send(self, verbs: list[tuple[str, bytes]]) -> None:
        """Send acknowledgements, and return once JetStream has confirmed the last one."""
        verbs = [(reply, verb) for reply, verb in verbs if reply]
        if not verbs:
            return
        for reply, verb in verbs[:-1]:
            await self._connection.publish(reply, verb)
        await self._connection.request(*verbs[-1])

    async def _report(self, settlement: Settlement) -> None:
        """Notify the replicas, if a caller of one waits for this delivery, once and without a guarantee."""
        answer_to, refusal = settlement.lease.answer_to, settlement.refusal
        if answer_to.startswith(INBOX):
            outcome = None if refusal is None else (refusal.reason, refusal.status, refusal.detail)
            with contextlib.suppress(OutboxUnavailableError):
                await self._connection.publish(answer_to, orjson.dumps((settlement.lease.stored.message_id, outcome)))


def _end(flushes: Sequence["asyncio.Future[None]"], error: OutboxUnavailableError | None) -> None:
    """Resolve flushes, with an error if there is one."""
    for flush in flushes:
        if not flush.done():
            if error is None:
                flush.set_result(None)
            else:
                flush.set_exception(error)


def parse_report(data: bytes) -> tuple[str, Refusal | None]:
    """Parse another process's report of a delivery: the message_id, and the Refusal if there is one.

    Raises:
        ValueError: it is malformed.
    """
    message_id, outcome = orjson.loads(data)
    if outcome is None:
        return str(message_id), None
    reason, status, detail = outcome
    return str(message_id), Refusal(reason, status, detail)
