"""The writer of an outbox: one thread that does one round after another on the SQLite file."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

import structlog

from service.errors import OutboxUnavailableError
from service.outbox.base import Stored
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.group_commit import Counts, GroupCommit
from service.outbox.sqlite.tail import TailCache

log = structlog.get_logger()

WRITER_ENDED = "the outbox's writer has ended; only a restart of the server mends that"


class Writer:
    """Takes rounds from the event loop and hands them back, done; nothing else touches the file meanwhile."""

    def __init__(
        self,
        file: Database,
        tail: TailCache,
        *,
        now: Callable[[], int],
        finished: Callable[[GroupCommit], None],
        ended: Callable[[], None],
    ) -> None:
        """Start the thread; call on the event loop that will use it.

        Args:
            file: what is written to.
            tail: asked whether it wants the events that a round puts; not touched otherwise.
            now: milliseconds since the epoch, by the outbox's steady clock.
            finished: called on the event loop with each round that is done, in their order.
            ended: called on the event loop should the thread ever die of something unforeseen.
        """
        self._file = file
        self._tail = tail
        self._now = now
        self._finished = finished
        self._ended = ended
        self.commits = 0
        self.committed_events = 0
        self.oldest_at = file.oldest_at()
        self.reusable = file.reusable()
        self._is_blind = False
        self._loop = asyncio.get_running_loop()
        self._rounds: queue.SimpleQueue[GroupCommit | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox-writer", daemon=True)
        self._thread.start()

    def hand_over(self, work: GroupCommit) -> None:
        """Have a round done. The one before it has to be back."""
        self._rounds.put(work)

    async def stop(self) -> None:
        """Return once the thread has done what it was given and is gone."""
        self._rounds.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # -- on the thread

    def _run(self) -> None:
        try:
            while (work := self._rounds.get()) is not None:
                self._do(work)
                if not self._tell(self._finished, work):
                    return
        except BaseException:  # callers that wait have to hear of it, whatever it is
            self._tell(self._ended)
            log.critical("the outbox's writer has ended", exc_info=True)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> bool:
        """Have the event loop call; False where it is closed and nobody waits any more."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def _do(self, work: GroupCommit) -> None:
        if work.puts or work.calls or work.is_trial or work.settlements():
            try:
                self._commit(work)
            except OutboxUnavailableError as error:
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
        self._look()

    def _look(self) -> None:
        """Read what the bounds and the statistics need; where that fails, what was read before stays."""
        try:
            self.oldest_at, self.reusable = self._file.oldest_at(), self._file.reusable()
        except Exception:
            if not self._is_blind:  # said once, not with every round
                log.exception("the outbox's statistics cannot be read; they stand still")
            self._is_blind = True
        else:
            self._is_blind = False

    def _commit(self, work: GroupCommit) -> None:
        """Do all of a round in one transaction; nothing of it is answered before the fsync."""
        done: list[tuple[asyncio.Future[Any], Any]] = []
        new: list[Stored] = []
        ids: list[int] = []
        with self._file.transaction() as change:
            self._settle(work, change)
            if work.puts:
                entries, now = [entry for some, _ in work.puts for entry in some], self._now()
                ids = self._file.put(entries, now, change)
                if self._tail.is_whole:
                    new = [
                        Stored(id_, message_id, payload, accepted_at, now, 0, None, traceparent)
                        for id_, (message_id, payload, accepted_at, traceparent, _) in zip(ids, entries, strict=True)
                        if id_
                    ]
                start = 0
                for some, future in work.puts:
                    done.append((future, [id_ > 0 for id_ in ids[start : start + len(some)]]))
                    start += len(some)
            done.extend((future, call(change)) for call, future in work.calls)
            if work.is_trial:
                self._file.touch()
        work.done += done
        work.new = new  # not before: what a refused commit rolled back must not be delivered
        self._release(work)
        self.commits += 1
        self.committed_events += len(ids) - ids.count(0)

    def _refuse(self, work: GroupCommit, error: OutboxUnavailableError) -> None:
        """The disk refused the round: tell the callers, and settle at least, which needs less room."""
        work.refused = error
        work.done += [(future, error) for _, future in work.puts]
        work.done += [(future, error) for _, future in work.calls]
        try:
            if work.settlements():
                with self._file.transaction() as change:
                    self._settle(work, change)
                self._release(work)
        except Exception:  # noqa: BLE001  # the round that tries them again tells of what is unforeseen
            work.stuck = True

    def _release(self, work: GroupCommit) -> None:
        self._file.release(work.acks)
        self._file.release(nak[0] for nak in work.naks)
        self._file.release(term[0] for term in work.terms)

    def _settle(self, work: GroupCommit, change: Counts) -> None:
        self._file.ack(work.acks, change)
        for stored, due_at, now, attempted in work.naks:
            self._file.nak(stored, due_at, now, attempted=attempted)
        for stored, refusal, now in work.terms:
            self._file.term(stored, refusal, now, change)
