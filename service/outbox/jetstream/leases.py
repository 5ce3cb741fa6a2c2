"""Events that JetStream has leased to us, and what becomes of them.

Settlements are gathered for a moment and sent together; the last of them is confirmed by JetStream, which does them in
their order, so that all are. A dead letter is in its own stream before its event is given up: a crash in between
repeats, and loses nothing.
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

LINGER = 0.005  # seconds that settlements wait for more of them
TOUCH_SHARE = 3  # an event is kept ours this many times before its lease would end
STUCK_PAUSE = 1.0  # seconds until what could not be settled is tried again
ENDED = "what is settled is not sent any more: the server is about to end"
ACK, NAK, TERM, IN_PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"

log = structlog.get_logger()


@dataclass(slots=True)
class Lease:
    """An event that is ours for a time."""

    stored: Stored
    reply: str
    """Where JetStream wants to hear of it; empty where it does not, as the event's stream is gone."""
    stored_at: int
    """Milliseconds since the epoch, by the clock of NATS: tells it from one that has its id in a stream made anew."""
    answer_to: str
    """Where to tell of its delivery; empty where nobody waits for it."""
    touched_at: float
    """Seconds of the event loop's time: when JetStream last heard that we have it."""


@dataclass(slots=True)
class Settlement:
    """What became of an event."""

    lease: Lease
    verb: bytes
    refusal: Refusal | None = None
    letter: Message | None = None
    """The dead letter that has to be written before; None once it is."""


class Leases:
    """The events that are leased to this process."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        *,
        letters_subject: str,
        gone: Callable[[Sequence[Settlement]], None],
    ) -> None:
        """Make it; `run` makes it work.

        Args:
            connection: to NATS.
            publisher: writes dead letters.
            letters_subject: where they are published.
            gone: called with what was settled for good.
        """
        self._connection = connection
        self._publisher = publisher
        self._letters_subject = letters_subject
        self._gone = gone
        self._leases: dict[int, Lease] = {}
        self._redeliveries = Redeliveries()
        self._queue: list[Settlement] = []
        self._sending: list[Settlement] = []
        self._flushes: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()
        self._has_ended = False
        self.answer_to = ""
        """Where this process itself hears of deliveries."""

    @property
    def unsettled(self) -> int:
        """Settlements that are not sent yet."""
        return len(self._queue)

    @property
    def coming_letters(self) -> int:
        """Dead letters among them, and among those that are being sent."""
        return sum(settlement.refusal is not None for settlement in (*self._queue, *self._sending))

    # -- on the event loop's side

    def take(self, received: Received) -> Stored | None:
        """Note an event that was delivered to us; None where we have it already, and JetStream had forgotten that."""
        delivery = delivery_of(received.reply)
        now = asyncio.get_running_loop().time()
        if (lease := self._leases.get(delivery.id)) is not None:
            if lease.stored_at == delivery.stored_at:
                lease.reply, lease.touched_at = received.reply, now
                return None
            self.forget()
        stored = stored_of(received, delivery)
        if (note := self._redeliveries.take(stored.id)) is not None:
            stored = stored._replace(attempts=note.attempts, first_attempt_at=note.first_attempt_at)
        answer_to = (received.headers or {}).get(ANSWER_TO, "")
        self._leases[stored.id] = Lease(stored, received.reply, delivery.stored_at, answer_to, now)
        return stored

    def forget(self) -> None:
        """Hold nothing any more: the stream was made anew, where the same ids are those of other events."""
        log.warning("the stream of waiting events was made anew", leased_from_the_old_one=len(self._leases))
        for lease in (*self._leases.values(), *(settlement.lease for settlement in self._queue)):
            lease.reply = ""
        self._leases.clear()
        self._redeliveries = Redeliveries()

    def _lease_of(self, stored: Stored) -> Lease | None:
        """The lease of just this event; None where it is not ours any more."""
        lease = self._leases.get(stored.id)
        return lease if lease is not None and lease.stored == stored else None

    def ack(self, stored: Stored) -> None:
        """Settle as delivered."""
        if (lease := self._lease_of(stored)) is not None:
            self._settle(Settlement(lease, ACK))

    def nak(self, stored: Stored, delay: float, *, now: int, attempted: bool) -> None:
        """Settle as to be tried again in `delay` seconds; `now` is in milliseconds."""
        if (lease := self._lease_of(stored)) is None:
            return
        del self._leases[stored.id]  # at once, as it may be delivered again before we hear of it
        due_at = asyncio.get_running_loop().time() + delay
        first_attempt_at = stored.first_attempt_at or (now if attempted else None)
        self._redeliveries.add(stored.id, Note(lease.reply, due_at, stored.attempts + attempted, first_attempt_at))
        verb = NAK if delay <= 0 else NAK + b" " + orjson.dumps({"delay": round(delay * 1e9)})
        self._settle(Settlement(lease, verb))

    def term(self, stored: Stored, refusal: Refusal, letter: Message) -> None:
        """Settle as given up, once the dead letter is written."""
        if (lease := self._lease_of(stored)) is not None:
            self._settle(Settlement(lease, TERM, refusal, letter))

    def _settle(self, settlement: Settlement) -> None:
        self._queue.append(settlement)
        self._work.set()

    async def recall(self, limit: int) -> bool:
        """Have events that were put back delivered before their time; returns whether there are any."""
        await self.flush()
        replies = self._redeliveries.recall(limit, asyncio.get_running_loop().time())
        await self._send([(reply, NAK) for reply in replies])
        return bool(replies)

    async def give_back(self) -> None:
        """Let others have what is ours and not settled, at once."""
        await self._send([(lease.reply, NAK) for lease in self._leases.values()])
        self._leases.clear()

    async def touch(self, ack_wait: float) -> None:
        """Tell JetStream what we still have.

        Args:
            ack_wait: seconds after which it would give an event to another.
        """
        now = asyncio.get_running_loop().time()
        for lease in list(self._leases.values()):
            if now - lease.touched_at >= ack_wait / TOUCH_SHARE:
                await self._connection.publish(lease.reply, IN_PROGRESS)
                lease.touched_at = now

    async def flush(self) -> None:
        """Return once all that was settled before is.

        Raises:
            OutboxUnavailableError: it could not be; it is tried again.
            OutboxClosedError: the outbox is being closed.
        """
        if self._has_ended:
            raise OutboxClosedError(ENDED, STUCK_PAUSE)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append(future)
        self._work.set()
        await future

    # -- what is sent

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
                    # Repeated, a nak could take the event from whom it was given to meanwhile; it is done without it.
                    self._queue[:0] = [settlement for settlement in queue if not settlement.verb.startswith(NAK)]
                    self._sending = []
                    _end(flushes, error)
                    await asyncio.sleep(STUCK_PAUSE)
                    self._work.set()
                else:
                    self._sending = []
                    _end(flushes, None)
        finally:
            self._has_ended = True  # whoever waits for it, or would, is not to wait for ever
            _end([*flushes, *self._flushes], OutboxClosedError(ENDED, STUCK_PAUSE))

    async def _write(self, queue: list[Settlement]) -> None:
        """Send what can be sent, and leave in the queue what cannot.

        Raises:
            OutboxUnavailableError: something could not.
        """
        problem = await self._write_letters([settlement for settlement in queue if settlement.letter is not None])
        ready = [settlement for settlement in queue if settlement.letter is None]
        await self._send([(settlement.lease.reply, settlement.verb) for settlement in ready])
        final = [settlement for settlement in ready if not settlement.verb.startswith(NAK)]
        for settlement in final:
            if self._leases.get(settlement.lease.stored.id) is settlement.lease:
                del self._leases[settlement.lease.stored.id]
            await self._tell(settlement)
        self._gone(final)
        if problem is not None:
            queue[:] = [settlement for settlement in queue if settlement.letter is not None]
            raise problem

    async def _write_letters(self, terms: list[Settlement]) -> OutboxUnavailableError | None:
        """Write dead letters, each by itself, so that one that is written is not written again for another's sake."""
        results = await asyncio.gather(*map(self._write_letter, terms))
        return next((result for result in results if result is not None), None)

    async def _write_letter(self, term: Settlement) -> OutboxUnavailableError | None:
        assert term.letter is not None
        try:
            await self._publisher.publish(self._letters_subject, [term.letter])
        except OutboxUnavailableError as error:
            return error
        term.letter = None
        return None

    async def _send(self, verbs: list[tuple[str, bytes]]) -> None:
        """Send acknowledgements, and return once JetStream has done the last of them."""
        verbs = [(reply, verb) for reply, verb in verbs if reply]
        if not verbs:
            return
        for reply, verb in verbs[:-1]:
            await self._connection.publish(reply, verb)
        await self._connection.request(*verbs[-1])

    async def _tell(self, settlement: Settlement) -> None:
        """Tell the process whose caller waits for this; it is told once, and may miss it."""
        answer_to, refusal = settlement.lease.answer_to, settlement.refusal
        if answer_to.startswith(INBOX) and answer_to != self.answer_to:
            outcome = None if refusal is None else (refusal.reason, refusal.status, refusal.detail)
            with contextlib.suppress(OutboxUnavailableError):
                await self._connection.publish(answer_to, orjson.dumps((settlement.lease.stored.message_id, outcome)))


def _end(flushes: Sequence["asyncio.Future[None]"], error: OutboxUnavailableError | None) -> None:
    """Tell those that wait for settlements that they are done, or why they are not."""
    for flush in flushes:
        if not flush.done():
            if error is None:
                flush.set_result(None)
            else:
                flush.set_exception(error)


def read_answer(data: bytes) -> tuple[str, Refusal | None]:
    """Read what another process tells of a delivery: the message_id, and why it was refused.

    Raises:
        ValueError: it is not what it should be.
    """
    message_id, outcome = orjson.loads(data)
    if outcome is None:
        return str(message_id), None
    reason, status, detail = outcome
    return str(message_id), Refusal(reason, status, detail)
