"""The writer of an outbox: one thread that executes group commits on the SQLite file, one after another."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from service.errors import OutboxDamagedError, OutboxUnavailableError
from service.outbox.base import Entry, Stored, Totals
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.group_commit import Counts, GroupCommit
from service.outbox.sqlite.parts import Part, execute_parts
from service.outbox.sqlite.tail import TailCache
from service.outbox.sqlite.write_ahead_log import RESTING_SIZE

log = structlog.get_logger()

CLOCK_TOLERANCE = 1000  # milliseconds
WRITER_ENDED = "the outbox's writer has ended; restart the server"


class Writer:
    """Executes group commits for the event loop. Only its thread uses the file."""

    def __init__(
        self,
        file: Database,
        tail: TailCache,
        totals: Totals,
        *,
        now: Callable[[], int],
        finished: Callable[[GroupCommit], None],
        recounted: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """Start the thread. Called on the event loop that uses the outbox.

        Args:
            file: the outbox file.
            tail: only read, to find out whether the events of a put are wanted.
            totals: kept up to date.
            now: milliseconds since the epoch, by the corrected clock.
            finished: called on the event loop with each finished group commit, in order.
            recounted: called on the event loop once the counters were repaired.
            ended: called on the event loop if the thread dies of an unexpected error.
        """
        self._file = file
        self._tail = tail
        self._totals = totals
        self._now = now
        self._finished = finished
        self._recounted = recounted
        self._ended = ended
        self.oldest_at = file.leases.oldest_at()
        self.reusable = file.reusable()
        self.log_excess = 0
        """Bytes by which the write-ahead log is larger than it should ever be."""
        self._is_stale = False
        self._checks = True  # the counters may be checked before the next group commit
        self._checked_at = now()  # milliseconds; when it was last considered
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[GroupCommit | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox-writer", daemon=True)
        self._thread.start()

    def hand_over(self, work: GroupCommit) -> None:
        """Queue a group commit. The previous one must be finished."""
        self._queue.put(work)

    async def stop(self) -> None:
        """Finish the queued work and end the thread; return once it has ended."""
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # -- on the thread

    def _run(self) -> None:
        try:
            while (work := self._next_work()) is not None:
                self._do(work)
                self._checks = True
                if not self._notify(self._finished, work):
                    return
                self._file.log.checkpoint_if_due(at_once=work.is_trial)
        except BaseException:  # whatever it is, waiting callers must be notified
            self._notify(self._ended)
            log.critical("outbox writer ended", exc_info=True)

    def _next_work(self) -> GroupCommit | None:
        """Return the next group commit; check the counters until there is one, after the clock was set back too."""
        now = self._now()
        if now < self._checked_at - CLOCK_TOLERANCE:
            self._file.counter_check.restart()
        self._checked_at = now
        while self._checks and not self._file.counter_check.is_done:
            with contextlib.suppress(queue.Empty):
                return self._queue.get_nowait()
            self._check_counters()
        return self._queue.get()

    def _check_counters(self) -> None:
        now = self._now()
        try:
            if self._file.counter_check.step(now):
                self._notify(self._recounted)
        except (OutboxUnavailableError, sqlite3.DatabaseError):  # reported for the callers that meet it
            self._checks = False

    def _notify(self, callback: Callable[..., None], *arguments: object) -> bool:
        """Call back on the event loop; return False if it is closed and nobody waits any more."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def _do(self, work: GroupCommit) -> None:
        if work.puts or work.calls or work.is_trial or work.settlements():
            try:
                self._commit(work)
            except OutboxDamagedError as error:
                log.error("group commit failed; executing its parts", why=str(error))  # noqa: TRY400  no error of ours
                self._commit_apart(work)
            except OutboxUnavailableError as error:
                self._refuse(work, error)
            except Exception:
                log.exception("group commit failed; executing its parts")
                self._commit_apart(work)
        if work.released:
            self._file.leases.give_back(work.released)
        for read, future in work.reads:
            try:
                work.done.append((future, read()))
            except sqlite3.DatabaseError as error:
                work.done.append((future, self._file.translate(error)))
            except Exception as error:  # noqa: BLE001  # raised to the caller that awaits the future
                work.done.append((future, error))
        self._refresh()

    def _refresh(self) -> None:
        """Read the values for bounds and statistics; on failure, keep the previous ones."""
        try:
            self.oldest_at, self.reusable = self._file.leases.oldest_at(), self._file.reusable()
            self._count()
            self.log_excess = max(0, self._totals.log_bytes - RESTING_SIZE)
        except Exception:
            if not self._is_stale:  # logged once, not with every group commit
                log.exception("cannot read outbox statistics; using earlier values")
            self._is_stale = True
        else:
            self._is_stale = False

    def _count(self) -> None:
        totals, file = self._totals, self._file
        totals.evictions, totals.unreadable = file.evictions, len(file.leases.damage.ids)
        totals.incomplete_checkpoints, totals.log_bytes = file.log.incomplete_checkpoints, file.log.size()

    def _commit(self, work: GroupCommit) -> None:
        """Execute a group commit in one transaction; no future is resolved before the fsync."""
        done: list[tuple[asyncio.Future[Any], Any]] = []
        new: list[Stored] = []
        ids: list[int] = []
        with self._file.transaction() as change:
            self._settle(work, change)
            if work.puts:
                entries, now = [entry for put in work.puts for entry in put.entries], self._now()
                ids = self._file.put(entries, now, change)
                if self._tail.is_whole:
                    new = [
                        Stored(id_, message_id, payload, accepted_at, now, 0, None, traceparent)
                        for id_, (message_id, payload, accepted_at, traceparent, _) in zip(ids, entries, strict=True)
                        if id_
                    ]
                start = 0
                for put in work.puts:
                    end = start + len(put.entries)
                    done.append((put.future, [id_ > 0 for id_ in ids[start:end]]))
                    start = end
            done.extend((future, call(change)) for call, future in work.calls)
            if work.is_trial:
                self._file.touch()
        work.done += done
        work.new = new  # only now: events of a commit that was rolled back must not be delivered
        self._release(work)
        self._totals.commits += 1
        self._totals.committed_events += len(ids) - ids.count(0)

    def _commit_apart(self, work: GroupCommit) -> None:
        """Execute a group commit that failed, though the disk takes writes, in parts, so that few are affected.

        A settlement that fails by itself is parked: its event keeps its lease until a restart. A put or a call that
        fails by itself fails its caller.
        """
        work.is_apart = True
        settlements = [(piece, Part(partial(self._settle, piece))) for piece in work.each_settlement()]
        puts = [(put.future, Part(partial(self._put, put.entries))) for put in work.puts]
        calls = [(future, Part(call)) for call, future in work.calls]
        try:
            execute_parts(self._file.transaction, [part for _, part in settlements])
            execute_parts(self._file.transaction, [part for _, part in (*puts, *calls)])
        except OutboxUnavailableError as error:  # the disk, meanwhile
            work.refused = error
        for piece, part in settlements:
            if part.is_stored:
                self._release(piece)
            elif part.is_done:
                self._park(piece, part.outcome)
        work.keep_settlements(piece for piece, part in settlements if not part.is_done)
        work.stuck = work.settlements() > 0
        work.done += [(future, part.outcome if part.is_done else work.refused) for future, part in (*puts, *calls)]
        self._totals.commits += 1
        self._totals.committed_events += sum(sum(part.outcome) for _, part in puts if part.is_stored)

    def _park(self, piece: GroupCommit, error: Exception) -> None:
        """Report a settlement that failed by itself."""
        [stored] = piece.settled()
        self._totals.parked += 1
        log.error(
            "settlement parked; its event is kept and tried again after a restart",
            message_id=stored.message_id,
            why=repr(error),
            advice="examine the outbox file with pointillist-destination doctor",
        )

    def _put(self, entries: Sequence[Entry], change: Counts) -> list[bool]:
        return [id_ > 0 for id_ in self._file.put(entries, self._now(), change)]

    def _refuse(self, work: GroupCommit, error: OutboxUnavailableError) -> None:
        """Fail the callers of a group commit that the disk refused, but try to settle: that needs less space."""
        work.refused = error
        work.done += [(put.future, error) for put in work.puts]
        work.done += [(future, error) for _, future in work.calls]
        if not work.settlements() or self._settle_alone(work):
            return
        some = GroupCommit(acks=work.acks, naks=work.naks)
        if work.terms and some.settlements() and self._settle_alone(some):  # a dead letter needs more space
            work.acks, work.naks, work.has_settled = [], [], True
        work.stuck = True

    def _settle_alone(self, work: GroupCommit) -> bool:
        """Write nothing but settlements; return False if the disk refuses those too: they are tried again later."""
        try:
            with self._file.transaction() as change:
                self._settle(work, change)
        except Exception:  # noqa: BLE001  # retried, and reported, with the next group commit
            return False
        self._release(work)
        return True

    def _release(self, work: GroupCommit) -> None:
        self._file.leases.release(work.settled())

    def _settle(self, work: GroupCommit, change: Counts) -> None:
        self._file.ack(work.acks, change)
        for stored, due_at, now in work.naks:
            self._file.nak(stored, due_at, now)
        for stored, refusal, now in work.terms:
            self._file.term(stored, refusal, now, change)
