"""The outbox on NATS JetStream, which several replicas share.

Where it promises less than a file does, see Queue.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from secrets import token_hex
from typing import Any

import structlog

from service.clock import Clock
from service.errors import JetStreamError, OutboxClosedError, OutboxFullError, OutboxUnavailableError
from service.outbox.base import Entry, Refusal, Stats, Stored
from service.outbox.capacity import DELAY, REFUSED_PAUSE, Bounds, Capacity, CapacityWaiters, repeat
from service.outbox.jetstream.connection import INBOX, Connection, NatsAccess, Received
from service.outbox.jetstream.dead_letters import DeadLetterStream, JetStreamDeadLetters
from service.outbox.jetstream.headers import entry_headers, letter_headers
from service.outbox.jetstream.leases import Leases, Settlement, read_answer
from service.outbox.jetstream.publisher import Message, Publisher
from service.outbox.jetstream.puller import Puller, WaitingPull
from service.outbox.jetstream.state import StreamState, read_state
from service.outbox.jetstream.streams import CONSUMER, NOT_FOUND, Adopted, Plan, ensure

LOOK_INTERVAL = 1.0  # seconds between two looks at the streams
MAX_HELD = 2.0  # seconds for which an event that nobody fetches is kept from other replicas
MAX_SILENT = 3  # looks without an answer, after which the connection is made anew
CLOSE_TIMEOUT = 5.0  # seconds in which the last settlements have to be sent
CANCEL_PAUSE = 0.2  # seconds until a loop that did not hear that it shall end is told again
MAX_STUCK = 20_000  # settlements that could not be sent, above which nothing is fetched

log = structlog.get_logger()


class JetStreamOutbox:
    """An OpenOutbox on two streams of JetStream."""

    def __init__(
        self,
        access: NatsAccess,
        plan: Plan,
        *,
        clock: Clock,
        retry_max_delay: float,
        settled: Callable[[str, Refusal | None], None],
    ) -> None:
        """Make it on the event loop that will use it; `start` connects.

        Args:
            access: where NATS is.
            plan: what the streams shall be.
            clock: tells when events are queued and tried; due times are NATS' own matter.
            retry_max_delay: seconds; no event waits longer than that between tries.
            settled: told of deliveries, by other replicas, that callers of this one wait for.

        Raises:
            OutboxUnusableError: a TLS file cannot be used.
        """
        self._clock = clock
        self._plan = plan
        self._retry_max_delay = retry_max_delay
        self._settled = settled
        self._connection = Connection(access, lost=self._lose)
        self._publisher = Publisher(self._connection)
        self._leases = Leases(
            self._connection, self._publisher, letters_subject=plan.letters_subject, gone=self._note_gone
        )
        self._puller = Puller(self._connection, self._hear)
        self._waiting_pull = WaitingPull(self._connection, self._hear_waiting_pull)
        self._letters = DeadLetterStream(self._connection, self._publisher, plan)
        self.dead_letters = JetStreamDeadLetters(
            self._letters,
            check_capacity=self._refuse_when_full,
            changed=self._note_dead_letters_changed,
            now=self._now,
        )
        self._adopted: Adopted | None = None
        self._state = StreamState()
        self._room = Capacity(Bounds(), clock, lambda: 0)
        self._putting = [0, 0]  # events and bytes that are being put
        self._refused_until = float("-inf")  # seconds, steady
        self._refused: Callable[[float], OutboxUnavailableError] | None = None
        self._problem: str | None = None
        self._over: str | None = None
        self._silent = 0
        self._fetched: deque[Stored] = deque()
        self._fetched_at = 0.0
        self._is_pendingry = False
        self._arrived: list[Callable[[], None]] = []
        self._waiters = CapacityWaiters(self.full)
        self._is_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.commits = 0
        """Puts that the stream acknowledged, since start."""
        self.committed_events = 0
        """Events that those stored."""
        self.evictions = 0
        """JetStream does not tell of message_ids that it forgets."""

    # -- the beginning

    async def start(self, patience: float) -> None:
        """Connect, and wait for that for some seconds; then it goes on by itself, and is full until it is there.

        Raises:
            OutboxUnusableError: the streams will not do.
        """
        inbox = INBOX + token_hex(11)
        self._leases.answer_to = f"{inbox}.answer"
        await self._publisher.start(f"{inbox}.stored")
        await self._puller.start(f"{inbox}.fetched")
        await self._waiting_pull.listen(f"{inbox}.waiting")
        await self._letters.puller.start(f"{inbox}.letters")
        await self._connection.subscribe(self._leases.answer_to, self._hear_answer)
        loops: tuple[Coroutine[Any, Any, None], ...] = (self._connection.run(), self._leases.run(), self._mind())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        ready = asyncio.create_task(self._is_ready.wait())
        done, _ = await asyncio.wait({ready, *self._tasks}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        for task in done - {ready}:
            task.result()
        if not done:
            log.warning("the outbox is not there yet; events are refused until it is", why=self.unreachable())

    async def watch(self) -> None:
        """Return never, but raise what ends it.

        Raises:
            OutboxUnusableError: the streams, once they could be looked at, will not do.
        """
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _mind(self) -> None:
        """Keep what is known of the streams true, and what is leased ours."""
        while True:
            try:
                await self._connection.up()
                if self._adopted is None:
                    await self._adopt()
                await self._look()
                await self._keep()
                self._problem, self._silent = None, 0
            except OutboxUnavailableError as error:
                await self._note_problem(error)
            else:
                if not self._is_ready.is_set():
                    self._is_ready.set()
                    self._tell_arrived()
            await asyncio.sleep(LOOK_INTERVAL)

    async def _adopt(self) -> None:
        self._adopted = await ensure(self._connection, self._plan)
        self._room = Capacity(Bounds(self._adopted.events, self._adopted.bytes), self._clock, lambda: 0)

    async def _note_problem(self, error: OutboxUnavailableError) -> None:
        problem = f"the outbox cannot be looked at: {error}"
        if isinstance(error, JetStreamError) and error.code == NOT_FOUND:
            problem = f"the streams of the outbox are gone from NATS: {error}"
            self._adopted = None  # they are made anew
        elif self._connection.problem is None:
            self._silent += 1
            if self._silent % MAX_SILENT == 0:
                await self._connection.renew()
        if problem != self._problem and self._connection.problem is None:
            log.warning("the outbox is not usable now", why=problem)
        self._problem = problem

    async def _look(self) -> None:
        """Read the state of the streams."""
        before, held = self._state, self._state.events  # which goes on counting meanwhile
        self._state = state = await read_state(self._connection, self._plan, before)
        if before.made_at not in {"", state.made_at}:
            self._leases.forget()
        self._room.note_drained(max(0, held - state.events))
        self._waiters.notify()

    async def _keep(self) -> None:
        """Keep leases, but not those of events that nobody here wants."""
        assert self._adopted is not None
        await self._leases.touch(self._adopted.ack_wait)
        if self._fetched and asyncio.get_running_loop().time() - self._fetched_at > MAX_HELD:
            self._is_pendingry = False
            while self._fetched:
                self.nak(self._fetched.popleft(), 0.0, attempted=False)
        await self._start_waiting_pull()

    def _lose(self) -> None:
        """Nobody waits any more for what would have come over the connection that is gone."""
        self._publisher.lose()
        self._puller.lose()
        self._letters.puller.lose()
        self._waiting_pull.lose()

    # -- the verbs

    async def put(self, entries: Sequence[Entry]) -> list[bool]:
        """Store events and return once the stream acknowledged them all. See Sink.put."""
        self._refuse_when_full()
        queued_at = self._now()
        first = {entry.message_id: index for index, entry in reversed(list(enumerate(entries)))}
        once = [entry for index, entry in enumerate(entries) if first[entry.message_id] == index]
        answer_to = self._leases.answer_to
        messages = [Message(entry.payload, entry_headers(entry, queued_at, answer_to)) for entry in once]
        size = sum(len(entry.payload) for entry in once)
        self._putting[0] += len(once)
        self._putting[1] += size
        try:
            new = await self._publisher.publish(self._plan.events_subject, messages)
        except (OutboxFullError, JetStreamError) as error:
            self._note_refused(error)
            raise
        finally:
            self._putting[0] -= len(once)
            self._putting[1] -= size
        self.commits += 1
        self.committed_events += sum(new)
        self._state.events += sum(new)
        self._state.bytes += sum(len(entry.payload) for entry, is_new in zip(once, new, strict=True) if is_new)
        self._tell_arrived()
        is_new = dict(zip((entry.message_id for entry in once), new, strict=True))
        return [first[entry.message_id] == index and is_new[entry.message_id] for index, entry in enumerate(entries)]

    async def fetch(self, limit: int, *, early: bool = False) -> list[Stored]:
        """Lease events. See Queue.fetch."""
        if self._over is not None or self._adopted is None or self._leases.unsettled > MAX_STUCK:
            return []
        events: list[Stored] = []
        with contextlib.suppress(OutboxUnavailableError):  # a lost connection is reported elsewhere
            events += await self._fetch(limit)
            if early and len(events) < limit and await self._leases.recall(limit - len(events)):
                events += await self._fetch(limit - len(events))
            self._is_pendingry = len(events) < limit
            await self._start_waiting_pull()
        return events + self._take(limit - len(events))

    async def _fetch(self, limit: int) -> list[Stored]:
        if self._leases.unsettled:  # one that is put back for at once is to be found
            await self._leases.flush()
        if len(self._fetched) < limit:
            await self._puller.pull(self._plan.events_stream, CONSUMER, limit - len(self._fetched))
        return self._take(limit)

    def _take(self, limit: int) -> list[Stored]:
        return [self._fetched.popleft() for _ in range(min(limit, len(self._fetched)))]

    async def _start_waiting_pull(self) -> None:
        """Have the next event come by itself, where somebody wants more than there was."""
        if self._is_pendingry and not self._fetched:
            await self._waiting_pull.start(self._plan.events_stream, CONSUMER)

    def ack(self, stored: Stored) -> None:
        """Settle as delivered. See Queue.ack."""
        self._leases.ack(stored)

    def nak(self, stored: Stored, delay: float, *, attempted: bool = True) -> None:
        """Settle as to be tried again. See Queue.nak."""
        self._leases.nak(stored, min(delay, self._retry_max_delay), now=self._now(), attempted=attempted)

    def term(self, stored: Stored, refusal: Refusal) -> None:
        """Settle as a dead letter. See Queue.term."""
        self._leases.term(stored, refusal, Message(stored.payload, letter_headers(stored, refusal, self._now())))

    def subscribe(self, arrived: Callable[[], None]) -> None:
        """Have `arrived` called when something may be fetched. See Queue.subscribe."""
        self._arrived.append(arrived)

    def next_due(self) -> None:
        """JetStream delivers what was put back when it is due, and `arrived` is called then."""

    def stats(self) -> Stats:
        """What is held. See Queue.stats."""
        state = self._state
        letters = state.dead_letters + self._leases.coming_letters
        return Stats(max(0, state.events), max(0, state.bytes), state.oldest_at, letters)

    # -- what comes

    def _hear(self, received: Received) -> None:
        stored = self._leases.take(received)
        if stored is not None:
            self._fetched.append(stored)
            self._fetched_at = asyncio.get_running_loop().time()

    def _hear_waiting_pull(self, received: Received) -> None:
        self._hear(received)
        self._tell_arrived()

    async def _hear_answer(self, received: Received) -> None:
        try:
            self._settled(*read_answer(received.data))
        except ValueError:
            log.warning("what a replica tells of a delivery cannot be read; are all of one version?")

    def _tell_arrived(self) -> None:
        for arrived in self._arrived:
            arrived()

    def _note_gone(self, gone: Sequence[Settlement]) -> None:
        self._state.events -= len(gone)
        self._state.bytes -= sum(len(settlement.lease.stored.payload) for settlement in gone)
        self._state.dead_letters += sum(settlement.refusal is not None for settlement in gone)
        self._room.note_drained(len(gone))
        self._waiters.notify()

    async def _note_dead_letters_changed(self) -> None:
        """Have a relay that paused for want of capacity for dead letters, or that has new events, look again."""
        await self._look()
        self._tell_arrived()

    # -- bounds

    def unreachable(self) -> str | None:
        """Why the streams cannot be used now, in words; None while they can, be they full or not."""
        if self._over is not None:
            return self._over
        if (problem := self._connection.problem or self._problem) is not None:
            return problem
        return None if self._adopted is not None else "the streams of the outbox were not looked at yet"

    def full(self) -> OutboxUnavailableError | None:
        """Return the error that put would raise. See Sink.full."""
        if self._over is not None:
            return OutboxClosedError(self._over, DELAY)
        if (problem := self.unreachable()) is not None:
            return OutboxUnavailableError(problem, DELAY)
        if self._refused is not None and self._clock.steady() < self._refused_until:
            return self._refused(self._room.retry_after(self._state.events))
        events, size = self._putting
        return self._room.full(self._state.events + events, self._state.bytes + size)

    def broken(self) -> None:
        """A loop that ends, ends the server; see `watch`. What befalls NATS passes."""

    async def has_room(self) -> None:
        """Return once put would not be refused. See Sink.has_room."""
        await self._waiters.wait()

    def _refuse_when_full(self) -> None:
        if (error := self.full()) is not None:
            raise error

    def _note_refused(self, error: OutboxUnavailableError) -> None:
        """Leave the stream alone for a moment: it would refuse further events as well."""
        self._refused = repeat(error)
        self._refused_until = self._clock.steady() + REFUSED_PAUSE

    # -- the end

    async def flush(self) -> None:
        """Return once all that was settled before is, and what is known of the streams is true."""
        if self._over is not None:
            raise OutboxClosedError(self._over, DELAY)
        await self._leases.flush()
        await self._look()

    async def close(self) -> None:
        """Flush, give back what is leased, and disconnect."""
        if self._over is not None:
            return
        self._over = "the outbox is closed"
        if self.is_connected:
            with contextlib.suppress(OutboxUnavailableError, TimeoutError):  # else others get it when the leases end
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._waiting_pull.stop()
                    await self._leases.flush()
                    await self._leases.give_back()
        running = set(self._tasks)
        while running:  # asyncio.wait_for, which the client uses, may lose a cancellation before Python 3.12
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=CANCEL_PAUSE)
        self._waiters.notify()

    @property
    def is_connected(self) -> bool:
        """Whether NATS is reached now."""
        return self._connection.problem is None

    def _now(self) -> int:
        return round(self._clock.steady() * 1000)
