"""The outbox on NATS JetStream, which several replicas share.

Queue lists the promises in which it differs from a file.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from secrets import token_hex
from typing import Any

import structlog

from service.clock import Clock
from service.errors import JetStreamError, OutboxClosedError, OutboxUnavailableError
from service.outbox.base import Attachment, Entry, Pick, Refusal, Stats, Stored, Totals
from service.outbox.capacity import DELAY, Bounds, Capacity, CapacityWaiters
from service.outbox.jetstream.connection import INBOX, NOT_FOUND, Connection, NatsAccess, Received
from service.outbox.jetstream.dead_letters import DeadLetterStream, JetStreamDeadLetters
from service.outbox.jetstream.headers import letter_headers
from service.outbox.jetstream.leases import Leases, Settlement, parse_report
from service.outbox.jetstream.originals import Originals
from service.outbox.jetstream.publisher import Message, Publisher
from service.outbox.jetstream.puller import Puller, WaitingPull
from service.outbox.jetstream.puts import Puts
from service.outbox.jetstream.state import StreamState, read_state
from service.outbox.jetstream.streams import CONSUMER, Limits, Plan, ensure

REFRESH_INTERVAL = 1.0  # seconds between two reads of the streams' state
MAX_HELD = 2.0  # seconds for which a received event that nobody fetches is kept from other replicas
MAX_SILENT = 3  # reads without a response, after which the connection is established again
CLOSE_TIMEOUT = 5.0  # seconds for the last settlements
CANCEL_PAUSE = 0.2  # seconds until a task that missed its cancellation is cancelled again
MAX_STUCK = 20_000  # unsent settlements above which nothing is fetched

EARLY = {Pick.NEWEST, Pick.TRIED}

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
        """Create it on the event loop that uses it; `start` connects.

        Args:
            access: to NATS.
            plan: the wanted configuration of the streams.
            clock: for the times of queueing and attempts; due times are by NATS' own clock.
            retry_max_delay: maximum seconds between two attempts.
            settled: called with deliveries that callers of a replica wait for.

        Raises:
            OutboxUnusableError: a TLS file cannot be used.
        """
        self._clock = clock
        self._plan = plan
        self._retry_max_delay = retry_max_delay
        self._settled = settled
        self._connection = Connection(access, lost=self._connection_lost)
        self._publisher = Publisher(self._connection)
        self._leases = Leases(
            self._connection, self._publisher, letter_subject=plan.letter_subject, gone=self._note_gone
        )
        self._puller = Puller(self._connection, self._receive)
        self._waiting_pull = WaitingPull(self._connection, self._receive_waiting_pull)
        self._letters = DeadLetterStream(self._connection, self._publisher, plan)
        self.dead_letters = JetStreamDeadLetters(
            self._letters,
            check_capacity=self._refuse_when_full,
            changed=self._note_dead_letters_changed,
            now=self._now,
        )
        self._originals = Originals(self._connection, plan)
        self._limits: Limits | None = None
        self._state = StreamState()
        self._capacity = Capacity(Bounds(), clock, lambda: 0)
        self._puts = Puts(self._publisher, plan, clock)
        self._problem: str | None = None
        self._over: str | None = None
        self._silent = 0
        self._fetched: deque[Stored] = deque()
        self._fetched_at = 0.0
        self._wants_more = False
        self._arrived: list[Callable[[], None]] = []
        self._waiters = CapacityWaiters(self.full)
        self._is_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.totals = Totals()

    # -- start

    async def start(self, patience: float) -> None:
        """Connect, and return after at most `patience` seconds; until NATS is reached, `full` returns an error.

        Raises:
            OutboxUnusableError: the streams cannot be used.
        """
        inbox = INBOX + token_hex(11)
        await self._publisher.start(f"{inbox}.stored")
        await self._puller.start(f"{inbox}.fetched")
        await self._waiting_pull.listen(f"{inbox}.waiting")
        await self._letters.puller.start(f"{inbox}.letters")
        await self._connection.subscribe(self._plan.deliveries_subject, self._receive_report)
        loops: tuple[Coroutine[Any, Any, None], ...] = (self._connection.run(), self._leases.run(), self._monitor())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        ready = asyncio.create_task(self._is_ready.wait())
        done, _ = await asyncio.wait({ready, *self._tasks}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        for task in done - {ready}:
            task.result()
        if not done:
            log.warning("outbox not reachable yet; rejecting events until it is", why=self.unreachable())

    async def watch(self) -> None:
        """Never return, but raise the error that ends it. See OpenOutbox.watch.

        Raises:
            OutboxUnusableError: the streams, once they could be inspected, cannot be used.
        """
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _monitor(self) -> None:
        """Refresh the state of the streams and extend the leases, until cancelled."""
        while True:
            try:
                await self._connection.up()
                if self._limits is None:
                    await self._ensure()
                await self._refresh()
                await self._keep()
                self._problem, self._silent = None, 0
            except OutboxUnavailableError as error:
                await self._note_problem(error)
            else:
                if not self._is_ready.is_set():
                    self._is_ready.set()
                    self._notify_arrived()
            await asyncio.sleep(REFRESH_INTERVAL)

    async def _ensure(self) -> None:
        self._limits = await ensure(self._connection, self._plan)
        self._capacity = Capacity(Bounds(self._limits.events, self._limits.bytes), self._clock, lambda: 0)

    async def _note_problem(self, error: OutboxUnavailableError) -> None:
        problem = f"the state of the outbox cannot be read: {error}"
        if isinstance(error, JetStreamError) and error.code == NOT_FOUND:
            problem = f"the streams of the outbox no longer exist: {error}"
            self._limits = None  # they are created again
        elif self._connection.problem is None:
            self._silent += 1
            if self._silent % MAX_SILENT == 0:
                await self._connection.reconnect()
        if problem != self._problem and self._connection.problem is None:
            log.warning("outbox unavailable", why=problem)
        self._problem = problem

    async def _refresh(self) -> None:
        """Read the state of the streams."""
        before, held = self._state, self._state.events  # which other tasks change meanwhile
        self._state = state = await read_state(self._connection, self._plan, before)
        self._puts.note_answer()
        if before.created_at not in {"", state.created_at}:
            self._leases.discard_all()
        self._capacity.note_drained(max(0, held - state.events))
        self._waiters.notify()

    async def _keep(self) -> None:
        """Extend the leases, and release those of events that nobody has fetched for a while."""
        assert self._limits is not None
        await self._leases.extend(self._limits.ack_wait)
        if self._fetched and asyncio.get_running_loop().time() - self._fetched_at > MAX_HELD:
            self._wants_more = False
            while self._fetched:
                self.release(self._fetched.popleft())
        await self._start_waiting_pull()

    def _connection_lost(self) -> None:
        """End everything that waits for a response over the connection that is gone."""
        self._publisher.connection_lost()
        self._puller.connection_lost()
        self._letters.puller.connection_lost()
        self._waiting_pull.connection_lost()

    # -- the verbs

    async def put(self, entries: Sequence[Entry], *, in_bulk: bool = False) -> list[bool]:  # noqa: ARG002  shares no commit
        """Store events and return once the stream acknowledged them all. See Sink.put."""
        first = {entry.message_id: index for index, entry in reversed(list(enumerate(entries)))}
        once = [entry for index, entry in enumerate(entries) if first[entry.message_id] == index]
        originals = dict(zip((entry.message_id for entry in once), await self._publish(once), strict=True))
        return [
            first[entry.message_id] == index and not originals[entry.message_id] for index, entry in enumerate(entries)
        ]

    async def attach(self, entry: Entry) -> Attachment:
        """Store an event, or find the one of which it is a duplicate. See Sink.attach."""
        [original] = await self._publish([entry])
        if not original:
            return Attachment(is_new=True, is_pending=True)
        return await self._originals.find(original, entry.message_id)

    async def _publish(self, entries: Sequence[Entry]) -> list[int]:
        """Publish events with different message_ids; returns the sequence numbers of their originals, or 0."""
        self._refuse_when_full()
        originals = await self._puts.publish(entries, self._now())
        count = originals.count(0)
        self.totals.commits += 1
        self.totals.committed_events += count
        self._state.events += count
        self._state.bytes += sum(len(entry.payload) for entry, one in zip(entries, originals, strict=True) if not one)
        self._notify_arrived()
        return originals

    async def fetch(self, limit: int, pick: Pick = Pick.READY) -> list[Stored]:
        """Lease events. See Queue.fetch."""
        if self._over is not None or self._limits is None or self._leases.unsettled > MAX_STUCK:
            return []
        events: list[Stored] = []
        with contextlib.suppress(OutboxUnavailableError):  # a lost connection is reported elsewhere
            events += await self._fetch(limit)
            if pick in EARLY and len(events) < limit and await self._leases.recall(limit - len(events)):
                events += await self._fetch(limit - len(events))
            self._wants_more = len(events) < limit
            await self._start_waiting_pull()
        return events + self._take(limit - len(events))

    async def _fetch(self, limit: int) -> list[Stored]:
        if self._leases.unsettled:  # so that an event put back without a delay is found
            await self._leases.flush()
        if len(self._fetched) < limit:
            await self._puller.pull(self._plan.events_stream, CONSUMER, limit - len(self._fetched))
        return self._take(limit)

    def _take(self, limit: int) -> list[Stored]:
        return [self._fetched.popleft() for _ in range(min(limit, len(self._fetched)))]

    async def _start_waiting_pull(self) -> None:
        """Have the next event delivered as soon as it exists, if the last fetch found fewer than it wanted."""
        if self._wants_more and not self._fetched:
            await self._waiting_pull.start(self._plan.events_stream, CONSUMER)

    def ack(self, stored: Stored) -> None:
        """Settle as delivered. See Queue.ack."""
        self._leases.ack(stored)

    def nak(self, stored: Stored, delay: float) -> None:
        """Settle for redelivery. See Queue.nak."""
        self._leases.nak(stored, min(delay, self._retry_max_delay), now=self._now(), attempted=True)

    def release(self, stored: Stored, delay: float = 0.0) -> None:
        """Give an event back. See Queue.release."""
        self._leases.nak(stored, min(delay, self._retry_max_delay), now=self._now(), attempted=False)

    async def recall(self, name: str) -> str:  # noqa: ARG002  see OpenOutbox.recall
        """Return "": replicas share nothing but events."""
        return ""

    async def remember(self, name: str, text: str) -> None:
        """Keep nothing. See OpenOutbox.remember."""

    def term(self, stored: Stored, refusal: Refusal) -> None:
        """Settle as a dead letter. See Queue.term."""
        self._leases.term(stored, refusal, Message(stored.payload, letter_headers(stored, refusal, self._now())))

    def settles(self) -> bool:
        """Return True: JetStream is told of each settlement at once. See Queue.settles."""
        return True

    def subscribe(self, arrived: Callable[[], None]) -> None:
        """Have `arrived` called when an event may be fetched. See Queue.subscribe."""
        self._arrived.append(arrived)

    def next_due(self) -> None:
        """Return None: JetStream redelivers events when they are due, and `arrived` is called then."""

    def stats(self) -> Stats:
        """Return the counts. See Queue.stats."""
        state = self._state
        letters = state.dead_letters + self._leases.coming_letters
        return Stats(max(0, state.events), max(0, state.bytes), state.oldest_at, letters)

    # -- receiving

    def _receive(self, received: Received) -> None:
        stored = self._leases.take(received)
        if stored is not None:
            self._fetched.append(stored)
            self._fetched_at = asyncio.get_running_loop().time()

    def _receive_waiting_pull(self, received: Received) -> None:
        self._receive(received)
        self._notify_arrived()

    async def _receive_report(self, received: Received) -> None:
        try:
            self._settled(*parse_report(received.data))
        except ValueError:
            log.warning("unreadable delivery report from a replica; do all run one version?")

    def _notify_arrived(self) -> None:
        for arrived in self._arrived:
            arrived()

    def _note_gone(self, gone: Sequence[Settlement]) -> None:
        self._state.events -= len(gone)
        self._state.bytes -= sum(len(settlement.lease.stored.payload) for settlement in gone)
        self._state.dead_letters += sum(settlement.refusal is not None for settlement in gone)
        self._capacity.note_drained(len(gone))
        self._waiters.notify()

    async def _note_dead_letters_changed(self) -> None:
        """Wake a relay that is paused at the bound of dead letters, or that has new events."""
        await self._refresh()
        self._notify_arrived()

    # -- bounds

    def unreachable(self) -> str | None:
        """Return the reason why the streams cannot be used now. See OpenOutbox.unreachable."""
        if self._over is not None:
            return self._over
        if (problem := self._connection.problem or self._problem) is not None:
            return problem
        return None if self._limits is not None else "the streams of the outbox were not checked yet"

    def full(self) -> OutboxUnavailableError | None:
        """Return the error that put would raise. See Sink.full."""
        if self._over is not None:
            return OutboxClosedError(self._over, DELAY)
        if (problem := self.unreachable()) is not None:
            return OutboxUnavailableError(problem, DELAY)
        if (refusal := self._puts.refusal(self._capacity.retry_after(self._state.events))) is not None:
            return refusal
        return self._capacity.full(self._state.events + self._puts.events, self._state.bytes + self._puts.bytes)

    def broken(self) -> None:
        """Return None: a task that ends, ends the server (see `watch`), and failures of NATS pass."""

    async def has_room(self) -> None:
        """Return once put would not be refused. See Sink.has_room."""
        await self._waiters.wait()

    def _refuse_when_full(self) -> None:
        if (error := self.full()) is not None:
            raise error

    # -- end

    async def flush(self) -> None:
        """Return once every settlement made before is confirmed, and the state of the streams is read."""
        if self._over is not None:
            raise OutboxClosedError(self._over, DELAY)
        await self._leases.flush()
        await self._refresh()

    async def close(self) -> None:
        """Flush, release the leases, and disconnect."""
        if self._over is not None:
            return
        self._over = "the outbox is closed"
        if self.is_connected:
            with contextlib.suppress(
                OutboxUnavailableError, TimeoutError
            ):  # otherwise others get the events when the leases end
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._waiting_pull.stop()
                    await self._leases.flush()
                    await self._leases.release_all()
        running = set(self._tasks)
        while running:  # before Python 3.12 asyncio.wait_for, which the client uses, may lose a cancellation
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=CANCEL_PAUSE)
        self._waiters.notify()

    @property
    def is_connected(self) -> bool:
        """True while connected to NATS."""
        return self._connection.problem is None

    def _now(self) -> int:
        return round(self._clock.corrected() * 1000)
