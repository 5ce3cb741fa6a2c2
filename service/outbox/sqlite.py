"""The outbox on SQLite: one writer thread, and a group commit that many callers share.

While one commit is being fsynced, everything that arrives is gathered; when it ends, all of that goes into the next.
So a lone caller waits for one fsync, and a thousand callers share one. The event loop hands work over and takes
results back once a commit, never once an event.
"""

import asyncio
import contextlib
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import structlog

from service.clock import Clock
from service.errors import OutboxError, OutboxFullError
from service.outbox.base import DeadLetter, DeadLetterFilter, Entry, Refusal, Stats, Stored
from service.outbox.room import DELAY, DISK_CHECK_INTERVAL, Bounds, Room
from service.outbox.round import Round
from service.outbox.sqlite_file import Counts, DiskRefusedError, SqliteFile
from service.outbox.tail import Tail

Result = TypeVar("Result")

log = structlog.get_logger()

SETTLE_LINGER = 0.02  # seconds that a commit of nothing but settlements may wait for more of them
SETTLE_MOST = 1000  # settlements that do not wait any longer
STUCK_MOST = 20_000  # settlements that could not be written, above which nothing is fetched
DEAD_LETTER_CHUNK = 500  # dead letters moved or deleted in one transaction


class SqliteOutbox:
    """An Outbox in one SQLite file."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        window: float,
        window_ids: int,
        retry_max_delay: float,
        bounds: Bounds,
        disk_free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        """Open the file on the calling thread; call on the event loop that will use it.

        Args:
            path: the file.
            clock: tells due times and ages.
            window: seconds for which a message_id is remembered.
            window_ids: how many message_ids are remembered at most.
            retry_max_delay: seconds; no event waits longer than that between tries, whatever the clock does.
            bounds: what is refused beyond.
            disk_free: bytes free in a folder.

        Raises:
            OutboxUnusableError: the file cannot be used.
        """
        self._file = SqliteFile(path, window=window, window_ids=window_ids)
        self._clock = clock
        folder = path.absolute().parent
        self._room = Room(bounds, clock, lambda: disk_free(folder) + self._reusable)
        self._retry_max_delay = retry_max_delay
        self._loop = asyncio.get_running_loop()
        self._next = Round()
        self._writing: Round | None = None
        self._tail = Tail()
        self._due_at = -inf  # milliseconds; the store holds no event that is due before
        self._counts = self._file.counts  # as of the last round that came back, on the event loop's side
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._timer_lingers = False
        self._arrived: list[Callable[[], None]] = []
        self._oldest_at = self._file.oldest_at()
        self._reusable = self._file.reusable()  # without it an outbox that filled the disk would stay full when empty
        self._emptier = asyncio.Event()
        self._closed = False
        self.commits = 0
        self.committed_events = 0
        self._rounds: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="outbox-writer", daemon=True)
        self._thread.start()

    # -- the verbs

    async def put(self, entries: Sequence[Entry]) -> list[bool]:
        """Store events and return once they are fsynced. See Outbox.put."""
        self._refuse_when_full()
        future: asyncio.Future[list[bool]] = self._loop.create_future()
        self._next.put(entries, future)
        self._schedule()
        return await future

    async def fetch(self, limit: int, *, early: bool = False) -> list[Stored]:
        """Lease events. See Outbox.fetch."""
        if self._next.stuck and self._next.settlements() > STUCK_MOST:
            return []
        now = self._now()
        if self._tail.is_whole and now < self._due_at and not early:
            events = self._tail.take(limit)
            if events:
                self._file.cursor = events[-1].id
            return events
        latest = now + round(self._retry_max_delay * 1000)

        def read() -> tuple[list[Stored], float]:
            events = self._file.fetch_early(limit) if early else self._file.fetch(limit, now, latest)
            due_at = self._file.next_due()
            return events, inf if due_at is None else min(due_at, latest)

        events, due_at = await self._read(read)
        self._due_at = min([due_at, *(nak[1] for nak in self._next.naks)])  # with what was put back meanwhile
        self._tail.read_up_to(self._file.cursor, to_end=len(events) < limit)
        return events

    def ack(self, stored: Stored) -> None:
        """Settle as delivered. See Outbox.ack."""
        self._next.acks.append(stored)
        self._schedule(linger=True)

    def nak(self, stored: Stored, delay: float, *, attempted: bool = True) -> None:
        """Settle as to be tried again. See Outbox.nak."""
        now = self._now()
        due_at = now + round(min(delay, self._retry_max_delay) * 1000)
        self._due_at = min(self._due_at, due_at)
        self._next.naks.append((stored, due_at, now, attempted))
        self._schedule(linger=True)

    def term(self, stored: Stored, refusal: Refusal) -> None:
        """Settle as a dead letter. See Outbox.term."""
        self._next.terms.append((stored, refusal, self._now()))
        self._schedule(linger=True)

    def subscribe(self, arrived: Callable[[], None]) -> None:
        """Have `arrived` called when something may be fetched. See Outbox.subscribe."""
        self._arrived.append(arrived)

    def next_due(self) -> float | None:
        """Seconds until the next event is due. See Outbox.next_due."""
        return None if self._due_at == inf else max(0.0, (self._due_at - self._now()) / 1000)

    def stats(self) -> Stats:
        """What is held. See Outbox.stats."""
        counts = self._counts
        coming = len(self._next.terms) + (len(self._writing.terms) if self._writing else 0)
        return Stats(counts.events, counts.bytes, self._oldest_at, counts.dead_letters + coming)

    @property
    def evictions(self) -> int:
        """message_ids that the duplicate window forgot for want of room, since start."""
        return self._file.evictions

    # -- dead letters

    async def list_dead_letters(self, which: DeadLetterFilter, *, after: int, limit: int) -> list[DeadLetter]:
        """See Outbox.list_dead_letters."""
        return await self._read(lambda: self._file.list_dead_letters(which, after, limit))

    async def replay_dead_letters(self, which: DeadLetterFilter) -> int:
        """Each transaction moves some; a crash in between leaves every letter in exactly one of the two places.

        Raises:
            OutboxFullError: there is no room for waiting events.
        """
        self._refuse_when_full()
        now = self._now()

        def replay(newest: int, change: Counts) -> int:
            return self._file.replay_dead_letters(which, newest, now, DEAD_LETTER_CHUNK, change)

        return await self._repeat(replay)

    async def delete_dead_letters(self, which: DeadLetterFilter) -> int:
        """See Outbox.delete_dead_letters."""
        return await self._repeat(
            lambda newest, change: self._file.delete_dead_letters(which, newest, DEAD_LETTER_CHUNK, change)
        )

    async def _repeat(self, some: Callable[[int, Counts], int]) -> int:
        """Work through the dead letters that there are now; such as come while it lasts are not meant."""
        newest = await self._read(self._file.newest_dead_letter)
        total = 0
        while count := await self._call(lambda change: some(newest, change)):
            total += count
        return total

    # -- bounds

    async def has_room(self) -> None:
        """Return once put is not refused for want of room."""
        while self.full() is not None:
            self._emptier.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptier.wait(), DISK_CHECK_INTERVAL)

    def full(self) -> str | None:
        """Which bound is reached, in words; None where there is room."""
        events, size = self._counts.events, self._counts.bytes
        for queued in (self._next, self._writing):
            if queued is not None:
                events, size = events + queued.put_events, size + queued.put_bytes
        return self._room.full(events, size)

    def _refuse_when_full(self) -> None:
        if self._closed:
            message = "the outbox is closed"
            raise OutboxFullError(message, DELAY)
        if (reason := self.full()) is not None:
            raise OutboxFullError(reason, self._room.retry_after(self._counts.events))

    # -- the end

    async def flush(self) -> None:
        """Return once all that was settled before is on disk."""
        await self._call(lambda _: None)

    async def close(self) -> None:
        """Flush, stop the writer and close the file."""
        if self._closed:
            return
        try:
            await self.flush()
        except OutboxError:
            pass  # a disk that refuses now repeats some deliveries after the restart, and loses nothing
        finally:
            self._closed = True
            self._rounds.put(None)
            await self._loop.run_in_executor(None, self._thread.join)
            self._file.close()

    # -- between the event loop and the writer

    def _now(self) -> int:
        return round(self._clock.steady() * 1000)

    async def _call(self, function: Callable[[Counts], Result]) -> Result:
        future: asyncio.Future[Result] = self._loop.create_future()
        self._next.calls.append((function, future))
        self._schedule()
        return await future

    async def _read(self, function: Callable[[], Result]) -> Result:
        future: asyncio.Future[Result] = self._loop.create_future()
        self._next.reads.append((function, future))
        self._schedule()
        return await future

    def _schedule(self, *, linger: bool = False) -> None:
        """See that the next round is handed over: at the end of this turn of the loop, or when it has lingered."""
        if self._writing is not None:
            return
        if linger and self._next.settlements() < SETTLE_MOST:
            if self._timer is None:
                self._timer_lingers = True
                self._timer = self._loop.call_later(SETTLE_LINGER, self._hand_over)
            return
        if self._timer is not None:
            if not self._timer_lingers:
                return
            self._timer.cancel()
        self._timer_lingers = False
        self._timer = self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        if self._closed:
            return
        self._writing, self._next = self._next, Round()
        self._rounds.put(self._writing)

    def _finished(self, done: Round) -> None:
        """Take a round back, on the event loop."""
        self._writing = None
        self._counts = self._file.counts
        following = self._next
        if done.stuck:  # what could not be settled is settled with the next round
            following.acks[:0], following.naks[:0], following.terms[:0] = done.acks, done.naks, done.terms
            following.stuck = True
        else:
            self._room.note_drained(len(done.acks) + len(done.terms))
        for future, result in done.done:
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        for stored in done.new:
            self._tail.append(stored)
        if done.calls:  # a replay put events into the store that were never in the tail
            self._tail.forget()
        self._emptier.set()
        if following.puts or following.calls or following.reads:
            self._schedule()
        elif following.settlements():
            self._schedule(linger=True)
        if done.puts or done.calls:
            self._tell_arrived()

    def _tell_arrived(self) -> None:
        for arrived in self._arrived:
            arrived()

    # -- on the writer's thread

    def _write(self) -> None:
        while (work := self._rounds.get()) is not None:
            try:
                self._write_round(work)
            finally:
                try:
                    self._loop.call_soon_threadsafe(self._finished, work)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _write_round(self, work: Round) -> None:
        work.stuck = False  # what a round before could not settle gets its chance now
        if work.puts or work.calls or work.settlements():
            try:
                self._commit(work)
            except DiskRefusedError as error:
                self._refuse(work, error)
            except Exception as error:
                log.exception("unforeseen error in the outbox's writer")  # which outlives it; the callers hear of it
                work.done = [(future, error) for _, future in (*work.puts, *work.calls)]
                work.stuck = True
        for read, future in work.reads:
            try:
                work.done.append((future, read()))
            except Exception as error:  # noqa: BLE001  # it belongs to whoever awaits the future
                work.done.append((future, error))
        self._oldest_at = self._file.oldest_at()
        self._reusable = self._file.reusable()

    def _commit(self, work: Round) -> None:
        """Do all of a round in one transaction; nothing of it is answered before the fsync."""
        done: list[tuple[asyncio.Future[Any], Any]] = []
        new: list[Stored] = []
        with self._file.transaction() as change:
            self._settle(work, change)
            if work.puts:
                entries, now = [entry for some, _ in work.puts for entry in some], self._now()
                ids = self._file.put(entries, now, change)
                if self._tail.is_whole:
                    new = [Stored(id_, *entry, now, 0, None) for id_, entry in zip(ids, entries, strict=True) if id_]
                start = 0
                for some, future in work.puts:
                    done.append((future, [id_ > 0 for id_ in ids[start : start + len(some)]]))
                    start += len(some)
            done.extend((future, call(change)) for call, future in work.calls)
        work.done += done
        work.new = new  # not before: what a refused commit rolled back must not be delivered
        self._release(work)
        self.commits += 1
        self.committed_events += change.events if work.puts else 0

    def _refuse(self, work: Round, error: DiskRefusedError) -> None:
        """The disk refused the round: tell the callers, and settle at least, which needs less room."""
        self._room.note_refused()
        full = OutboxFullError(f"the disk of the outbox refuses writes: {error}", DELAY)
        work.done += [(future, full) for _, future in work.puts]
        work.done += [(future, full) for _, future in work.calls]
        try:
            if work.settlements():
                with self._file.transaction() as change:
                    self._settle(work, change)
                self._release(work)
        except DiskRefusedError:
            work.stuck = True

    def _release(self, work: Round) -> None:
        self._file.release(work.acks)
        self._file.release(nak[0] for nak in work.naks)
        self._file.release(term[0] for term in work.terms)

    def _settle(self, work: Round, change: Counts) -> None:
        self._file.ack(work.acks, change)
        for stored, due_at, now, attempted in work.naks:
            self._file.nak(stored, due_at, now, attempted=attempted)
        for stored, refusal, now in work.terms:
            self._file.term(stored, refusal, now, change)
