"""The outbox on SQLite: one writer thread, and a group commit that many callers share.

Work that arrives while one commit is being fsynced is collected and goes into the next. So a single caller waits for
one fsync, and a thousand callers share one. The event loop and the writer exchange work and results once per commit,
never once per event.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar

from service.clock import Clock
from service.errors import OutboxClosedError, OutboxError, OutboxUnavailableError
from service.outbox.base import Attachment, Entry, Pick, Refusal, Stats, Stored, Totals
from service.outbox.capacity import DELAY, Bounds, Capacity, CapacityWaiters
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.dead_letters import SqliteDeadLetters
from service.outbox.sqlite.group_commit import Counts, GroupCommit, Put, WaitingPuts
from service.outbox.sqlite.tail import TailCache
from service.outbox.sqlite.writer import WRITER_ENDED, Writer
from service.outbox.trial import Trials

Result = TypeVar("Result")

SETTLE_LINGER = 0.02  # seconds that a commit with only settlements waits for more of them
MAX_SETTLE = 1000  # settlements that are committed without waiting
MAX_ROUND = 5.0  # seconds that a group commit may take before new events are refused; an fsync takes milliseconds
MAX_UNSETTLED = 20_000  # settlements that are not on disk, above which nothing is sent
MAX_UNSETTLED_BYTES = 64 * 1024 * 1024  # of their events


class SqliteOutbox:
    """An OpenOutbox in one SQLite file."""

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
        """Open the file, on the calling thread. Called on the event loop that uses the outbox.

        Args:
            path: the file.
            clock: for due times and ages.
            window: seconds for which a message_id is remembered.
            window_ids: maximum number of message_ids remembered.
            retry_max_delay: maximum seconds between two attempts, even if the clock is set back.
            bounds: maximum sizes.
            disk_free: returns the bytes free in a folder.

        Raises:
            OutboxUnusableError: the file cannot be used.
        """
        self._file = Database(path, window=window, window_ids=window_ids)
        self._clock = clock
        folder = path.absolute().parent
        # With the reusable bytes of the file: without them, an outbox that filled the disk would stay full.
        self._capacity = Capacity(bounds, clock, lambda: disk_free(folder) + self._writer.reusable)
        self._retry_max_delay = retry_max_delay
        self._loop = asyncio.get_running_loop()
        self._next = GroupCommit()
        self._puts = WaitingPuts()
        self._writing: GroupCommit | None = None
        self._handed_over_at = 0.0
        self._is_stuck = False  # the disk refused settlements and has taken none since
        self._tail = TailCache()
        self._due_at = -inf  # milliseconds; no event in the file is due before
        self._counts = self._file.counts  # as of the last finished group commit
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._timer_lingers = False
        self._arrived: list[Callable[[], None]] = []
        self._waiters = CapacityWaiters(self.full)
        self._trials = Trials(clock, is_needed=self._needs_trial, make=self._try_disk)
        self.dead_letters = SqliteDeadLetters(
            self._file.dead_letters,
            read=self._read,
            write=self._call,
            check_capacity=self._refuse_when_full,
            now=self._now,
        )
        self.totals = Totals()
        self._closed = False
        self._over: str | None = None  # the reason why the outbox has ended
        self._writer = Writer(
            self._file,
            self._tail,
            self.totals,
            now=self._now,
            finished=self._finished,
            recounted=self._recounted,
            ended=lambda: self._end(WRITER_ENDED),
        )

    # -- the verbs

    async def put(self, entries: Sequence[Entry], *, in_bulk: bool = False) -> list[bool]:
        """Store events and return once they are fsynced. See Sink.put."""
        self._refuse_when_full()
        future: asyncio.Future[list[bool]] = self._future()
        self._puts.add(Put(entries, future, sum(len(entry.payload) for entry in entries)), in_bulk=in_bulk)
        self._schedule()
        return await future

    async def attach(self, entry: Entry) -> Attachment:
        """Store an event, or find the one of which it is a duplicate. See Sink.attach."""
        [is_new] = await self.put([entry])
        if is_new:
            return Attachment(is_new=True, is_pending=True)
        # After the commit that has every settlement made so far.
        return await self._read(lambda: self._file.find(entry.message_id))

    async def fetch(self, limit: int, pick: Pick = Pick.READY) -> list[Stored]:
        """Lease events. See Queue.fetch."""
        if self._over is not None or not self.settles():
            return []
        now = self._now()
        if self._tail.is_whole and (pick is Pick.NEW or (pick is Pick.READY and now < self._due_at)):
            events = self._tail.take(limit)
            if events:
                self._file.leases.cursor = events[-1].id
            return events
        latest = now + round(self._retry_max_delay * 1000)

        def read() -> tuple[list[Stored], float]:
            events = self._file.leases.fetch(limit, pick, now, latest)
            due_at = self._file.leases.next_due()
            return events, inf if due_at is None else due_at if due_at <= latest else now

        if pick is Pick.NEWEST:
            self._tail.clear()  # it would hand them out again
        events, due_at = await self._read(read)
        self._due_at = min([due_at, *(nak[1] for nak in self._next.naks)])  # including naks of the meantime
        self._tail.read_up_to(self._file.leases.cursor, to_end=len(events) < limit and pick in (Pick.READY, Pick.NEW))
        return events

    def ack(self, stored: Stored) -> None:
        """Settle as delivered. See Queue.ack."""
        self._next.ack(stored)
        self._schedule(linger=True)

    def nak(self, stored: Stored, delay: float) -> None:
        """Settle for redelivery. See Queue.nak."""
        now = self._now()
        due_at = now + round(min(delay, self._retry_max_delay) * 1000)
        self._due_at = min(self._due_at, due_at)
        self._next.nak(stored, due_at, now)
        self._schedule(linger=True)

    def release(self, stored: Stored, delay: float = 0.0) -> None:  # noqa: ARG002  a lease in memory ends at once
        """End the lease of an event, which stays as it was. See Queue.release."""
        self._tail.clear()
        self._due_at = min(self._due_at, self._now())
        self._next.released.append(stored)
        self._schedule(linger=True)

    async def recall(self, name: str) -> str:
        """Return a remembered text. See OpenOutbox.recall."""
        return await self._read(lambda: self._file.recall(name))

    async def remember(self, name: str, text: str) -> None:
        """Keep a text. See OpenOutbox.remember."""
        await self._call(lambda _: self._file.remember(name, text))

    def term(self, stored: Stored, refusal: Refusal) -> None:
        """Settle as a dead letter. See Queue.term."""
        self._next.term(stored, refusal, self._now())
        self._schedule(linger=True)

    def settles(self) -> bool:
        """Return True while settlements reach the disk, and few are on their way. See Queue.settles."""
        if self._is_stuck:
            return False
        count, size = self._next.settlements(), self._next.settled_bytes
        if self._writing is not None:
            count, size = count + self._writing.settlements(), size + self._writing.settled_bytes
        return count < MAX_UNSETTLED and size < MAX_UNSETTLED_BYTES

    def subscribe(self, arrived: Callable[[], None]) -> None:
        """Have `arrived` called when an event may be fetched. See Queue.subscribe."""
        self._arrived.append(arrived)

    def next_due(self) -> float | None:
        """Return the seconds until the next event is due. See Queue.next_due."""
        if self._due_at == inf or self._over is not None:
            return None
        seconds = (self._due_at - self._now()) / 1000
        return max(0.0, seconds) if seconds <= self._retry_max_delay else 0.0  # 0: the clock was set back

    def stats(self) -> Stats:
        """Return the counts. See Queue.stats."""
        counts = self._counts
        coming = len(self._next.terms) + (len(self._writing.terms) if self._writing else 0)
        return Stats(counts.events, counts.bytes, self._writer.oldest_at, counts.dead_letters + coming)

    # -- bounds

    async def has_room(self) -> None:
        """Return once put would not be refused. See Sink.has_room."""
        await self._waiters.wait()

    def broken(self) -> str | None:
        """Return the reason why only a restart helps. See OpenOutbox.broken."""
        return self._over

    def unreachable(self) -> str | None:
        """Return the reason of `broken`: a file that was opened is always reachable."""
        return self._over

    async def watch(self) -> None:
        """Never return: nothing ends a file that was opened."""
        await asyncio.Event().wait()

    def full(self) -> OutboxUnavailableError | None:
        """Return the error that put would raise. See Sink.full."""
        if self._over is not None:
            return self._ended(self._over)
        if self._writing is not None and self._clock.steady() - self._handed_over_at > MAX_ROUND:
            return OutboxUnavailableError(f"the disk of the outbox has not answered for {MAX_ROUND:.0f} s", DELAY)
        events, size = self._counts.events, self._counts.bytes + self._writer.log_excess
        events, size = events + self._puts.events, size + self._puts.bytes
        if self._writing is not None:
            events, size = events + self._writing.put_events, size + self._writing.put_bytes
        return self._capacity.full(events, size)

    def _refuse_when_full(self) -> None:
        if (error := self.full()) is not None:
            raise error

    # -- the end

    async def flush(self) -> None:
        """Return once every settlement made before is on disk. See OpenOutbox.flush."""
        await self._call(lambda _: None)

    async def close(self) -> None:
        """Flush, stop the writer and close the file."""
        if self._closed:
            return
        try:
            await self.flush()
        except OutboxError:
            pass  # if the disk refuses now, some deliveries are repeated after the restart, and nothing is lost
        finally:
            self._closed = True
            self._trials.stop()
            await self._writer.stop()
            self._end("the outbox is closed")
            self._file.close()

    def _end(self, reason: str) -> None:
        """Stop accepting work, and fail everything that is pending."""
        self._over = self._over or reason
        self._next.puts += self._puts.take_all()
        for unfinished in (self._writing, self._next):
            if unfinished is not None:
                unfinished.fail(self._ended(self._over))

    def _ended(self, reason: str) -> OutboxUnavailableError:
        """Return the error for any use of an outbox that is closed, or whose writer has ended."""
        return (OutboxClosedError if self._closed else OutboxUnavailableError)(reason, DELAY)

    # -- between the event loop and the writer

    def _now(self) -> int:
        return round(self._clock.corrected() * 1000)

    def _future(self) -> "asyncio.Future[Result]":
        """Return a future for the next group commit.

        Raises:
            OutboxUnavailableError: the outbox has ended.
        """
        if self._over is not None:
            raise self._ended(self._over)
        return self._loop.create_future()

    async def _call(self, function: Callable[[Counts], Result]) -> Result:
        future: asyncio.Future[Result] = self._future()
        self._next.calls.append((function, future))
        self._schedule()
        return await future

    async def _read(self, function: Callable[[], Result]) -> Result:
        future: asyncio.Future[Result] = self._future()
        self._next.reads.append((function, future))
        self._schedule()
        return await future

    def _schedule(self, *, linger: bool = False) -> None:
        """Hand over the next group commit at the end of this turn of the loop or, with `linger`, a little later."""
        if self._writing is not None:
            return
        if linger and self._is_stuck:
            return  # the next try of the disk has them
        if linger and self._next.settlements() < MAX_SETTLE:
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
        if self._closed or self._over is not None:
            return
        self._puts.fill(self._next)
        self._writing, self._next = self._next, GroupCommit()
        self._handed_over_at = self._clock.steady()
        self._writer.hand_over(self._writing)

    def _finished(self, done: GroupCommit) -> None:
        """Take the results of a group commit, on the event loop."""
        self._writing = None
        self._counts = self._file.counts
        following = self._next
        if done.stuck:  # retry the settlements with the next group commit
            following.acks[:0], following.naks[:0], following.terms[:0] = done.acks, done.naks, done.terms
            following.settled_bytes += done.settled_bytes
            following.retries, self._is_stuck = True, not done.has_settled
        else:
            self._is_stuck = self._is_stuck and not done.settlements()
            self._capacity.note_drained(len(done.acks) + len(done.terms))
        self._note_disk(done)
        if done.refused is not None:
            # No put overtakes those that were refused before.
            done.done += [(put.future, done.refused) for put in self._puts.take_all()]
        done.resolve()
        for stored in done.new:
            self._tail.append(stored)
        if done.calls or done.is_apart:  # events were added that were never in the tail
            self._tail.clear()
        self._waiters.notify()
        if self._puts or following.calls or following.reads or following.is_trial:
            self._schedule()
        elif following.settlements() or following.released:
            self._schedule(linger=True)
        if done.puts or done.calls or done.retries:
            self._notify_arrived()

    def _recounted(self) -> None:
        self._counts = self._file.counts
        self._waiters.notify()

    def _notify_arrived(self) -> None:
        for arrived in self._arrived:
            arrived()

    # -- a disk that refuses

    def _note_disk(self, done: GroupCommit) -> None:
        if done.proves_disk_writable():
            self._capacity.note_written()
        elif done.refused is not None:
            self._capacity.note_refused(done.refused)
        self._trials.note()

    def _needs_trial(self) -> bool:
        """Return True while the disk refuses, or the log is too large: the write after a whole checkpoint cuts it."""
        return self._capacity.is_refused or self._writer.log_excess > 0

    def _try_disk(self) -> None:
        self._next.is_trial = True
        self._schedule()
