"""The SQLite file of the outbox: the statements on events, on the duplicate window and on the counters.

Everything is synchronous and runs on one thread over one connection. Each statement has many rows, because Python
releases the interpreter lock and acquires it again at every step of a statement: one INSERT of 64 rows acquires it
once, executemany 64 times.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from service.errors import OutboxUnavailableError
from service.events.message_id import digest
from service.outbox.base import Attachment, DeadLetter, Entry, Refusal, Stored
from service.outbox.sqlite.counter_check import CounterCheck
from service.outbox.sqlite.damage import raise_unless_damage
from service.outbox.sqlite.dead_letters import DeadLetterTable
from service.outbox.sqlite.disk import disk_error, has_no_space
from service.outbox.sqlite.group_commit import Counts
from service.outbox.sqlite.leases import Leases
from service.outbox.sqlite.lock import OutboxLock
from service.outbox.sqlite.opening import open_database, unusable

log = structlog.get_logger()

CHUNKS = (128, 16, 1)  # rows per statement
MIN_PRUNE = 256  # ids that may be pruned from the window in any transaction


def chunked(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Split rows into runs whose lengths are among CHUNKS, so that few statements are ever prepared."""
    start = 0
    for size in CHUNKS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def _values(columns: int, rows: int) -> str:
    return ",".join(["(" + ",".join("?" * columns) + ")"] * rows)


INSERT_SEEN = {
    n: f"INSERT INTO seen (id, digest, at) VALUES {_values(3, n)}"  # noqa: S608  # only question marks
    " ON CONFLICT (digest) DO NOTHING"
    for n in CHUNKS
}
FORGET_SEEN = {n: f"DELETE FROM seen WHERE at < ? AND digest IN ({','.join('?' * n)})" for n in CHUNKS}  # noqa: S608
INSERT_EVENT = {
    n: f"INSERT INTO event (id, message_id, accepted_at, queued_at, payload, traceparent) VALUES {_values(6, n)}"  # noqa: S608
    for n in CHUNKS
}
COUNT_EVENT = {n: f"SELECT count(*), total(length(payload)) FROM event WHERE id IN {_values(n, 1)}" for n in CHUNKS}  # noqa: S608
DELETE_EVENT = {n: f"DELETE FROM event WHERE id IN {_values(n, 1)}" for n in CHUNKS}  # noqa: S608


class Database:
    """An open outbox file, locked by this process."""

    def __init__(self, path: Path, *, window: float, window_ids: int) -> None:
        """Open the file, creating it if it does not exist.

        Args:
            path: the database file; its folder must exist.
            window: seconds for which a message_id is remembered.
            window_ids: maximum number of message_ids remembered.

        Raises:
            OutboxUnusableError: the file is held by another server, foreign, damaged, or cannot be opened.
        """
        self._window = round(window * 1000)
        self._window_ids = window_ids
        self.evictions = 0
        """message_ids forgotten to keep the window within its count."""
        self._evicting = 0  # the same, of the current transaction
        self._prunes = True
        path = path.resolve()
        self._lock = OutboxLock(path)
        try:
            self._connection, self.log = open_database(path)
            self.leases = Leases(self._connection, lambda: self._next_id - 1)
            try:
                self._page_size = int(self._one("PRAGMA page_size")[0])
                self.counts = Counts(*self._one("SELECT events, bytes, seen, dead_letters FROM counter"))
                self._next_id = 1 + max(self._newest_event(), self._newest_seen())
            except sqlite3.Error as error:
                self._close_files()
                raise unusable(path, error) from error
        except BaseException:
            self._lock.release()
            raise
        self.dead_letters = DeadLetterTable(self._connection, self._requeue)
        self.counter_check = CounterCheck(self._connection, self.transaction, lambda: self.counts)

    def close(self) -> None:
        """Close the file, which checkpoints the write-ahead log into it."""
        self._close_files()
        self._lock.release()

    def _close_files(self) -> None:
        self._connection.close()
        self.log.close()

    # -- transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Counts]:
        """Run the body in one transaction, fsynced at its end. The body adds its changes to the Counts yielded.

        Raises:
            OutboxFullError: the disk is full; nothing of the transaction is stored.
            OutboxUnavailableError: the disk refuses writes for another reason; likewise.
        """
        change = Counts(0, 0, 0, 0)
        self._evicting = 0
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield change
            self._connection.execute(
                "UPDATE counter SET events = events + ?, bytes = bytes + ?, seen = seen + ?,"
                " dead_letters = dead_letters + ?",
                (change.events, change.bytes, change.seen, change.dead_letters),
            )
            self._connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError):
                raise self.translate(error) from error
            raise
        self.evictions += self._evicting
        self.counts += change

    def translate(self, error: sqlite3.DatabaseError) -> OutboxUnavailableError:
        """Return the error of this service for an error of SQLite on the file."""
        return disk_error(error, lambda: has_no_space(self._lock.descriptor))

    def touch(self) -> None:
        """Write to the disk without changing anything. Within a transaction.

        Two statements, because SQLite skips an update that leaves a row unchanged.
        """
        self._connection.execute("UPDATE counter SET seen = seen + 1")
        self._connection.execute("UPDATE counter SET seen = seen - 1")

    def put(self, entries: Sequence[Entry], now: int, change: Counts) -> list[int]:
        """Store entries; return one id per entry, 0 for a duplicate. Within a transaction."""
        first = self._next_id
        self._next_id += len(entries)
        rows = [
            (first + index, message_id, accepted_at, now, payload, traceparent)
            for index, (message_id, payload, accepted_at, traceparent, _) in enumerate(entries)
        ]
        execute = self._connection.execute
        horizon = now - self._window
        with self._noting_damage():
            has_expired = not self._prunes or self._has_expired(horizon)
        fresh = 0
        for chunk in chunked(rows):
            digests = [digest(row[1]) for row in chunk]
            if has_expired:
                change.seen -= execute(FORGET_SEEN[len(chunk)], (horizon, *digests)).rowcount
            parameters: list[Any] = []
            for row, seen in zip(chunk, digests, strict=True):
                parameters += (row[0], seen, now)
            fresh += execute(INSERT_SEEN[len(chunk)], parameters).rowcount
        if fresh == len(rows):
            ids = [row[0] for row in rows]
        else:
            new = {id_ for (id_,) in execute("SELECT id FROM seen WHERE id >= ?", (first,))}
            ids = [row[0] if row[0] in new else 0 for row in rows]
            rows = [row for row in rows if row[0] in new]
        for chunk in chunked(rows):
            execute(INSERT_EVENT[len(chunk)], [value for row in chunk for value in row])
        change.events += len(rows)
        change.bytes += sum(len(row[4]) for row in rows)
        change.seen += fresh
        if self._prunes:
            with self._noting_damage():
                self._prune(change, max(2 * len(rows), MIN_PRUNE), horizon)
        return ids

    def ack(self, stored: Sequence[Stored], change: Counts) -> None:
        """Delete delivered events. Within a transaction.

        The counters are lowered by the rows that are there, which should be all.
        """
        for chunk in chunked(stored):
            ids = [event.id for event in chunk]
            rows, size = self._connection.execute(COUNT_EVENT[len(chunk)], ids).fetchone()
            self._connection.execute(DELETE_EVENT[len(chunk)], ids)
            change.events -= rows
            change.bytes -= round(size)

    def nak(self, stored: Stored, due_at: int, now: int) -> None:
        """Schedule an event for redelivery at `due_at`, in milliseconds. Within a transaction."""
        self._connection.execute(
            "UPDATE event SET due_at = ?, attempts = attempts + 1, first_attempt_at = coalesce(first_attempt_at, ?)"
            " WHERE id = ?",
            (due_at, now, stored.id),
        )

    def term(self, stored: Stored, refusal: Refusal, now: int, change: Counts) -> None:
        """Turn an event into a dead letter. Within a transaction."""
        self.dead_letters.add(stored, refusal, now)
        self.ack([stored], change)
        change.dead_letters += 1

    # -- reading

    def find(self, message_id: str) -> Attachment:
        """Return the state of an event whose message_id is in the duplicate window."""
        found = self._connection.execute(
            "SELECT message_id FROM seen JOIN event USING (id) WHERE digest = ?", (digest(message_id),)
        ).fetchone()
        if found == (message_id,):  # after a restart an id may be that of another event
            return Attachment(is_new=False, is_pending=True)
        return Attachment(is_new=False, is_pending=False, refusal=self.dead_letters.refusal(message_id))

    def recall(self, name: str) -> str:
        """Return a remembered text; "" if there is none."""
        row = self._connection.execute("SELECT text FROM memory WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def remember(self, name: str, text: str) -> None:
        """Keep a text under a name. Within a transaction."""
        self._connection.execute(
            "INSERT INTO memory VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET text = excluded.text", (name, text)
        )

    def reusable(self) -> int:
        """Return the bytes of the file that can be reused; the file does not shrink when events leave it."""
        return int(self._one("PRAGMA freelist_count")[0]) * self._page_size

    def _requeue(self, letter: DeadLetter, now: int) -> None:
        """Store the event of a dead letter at the end of the queue. Within a transaction."""
        self._connection.execute(
            INSERT_EVENT[1],
            (self._next_id, letter.message_id, letter.accepted_at, now, letter.payload, letter.traceparent),
        )
        seen = digest(letter.message_id)
        if self._connection.execute("DELETE FROM seen WHERE digest = ?", (seen,)).rowcount:  # so that it is found
            self._connection.execute(INSERT_SEEN[1], (self._next_id, seen, now))
        self._next_id += 1

    # -- the duplicate window

    @contextlib.contextmanager
    def _noting_damage(self) -> Iterator[None]:
        """Stop pruning if the window is damaged: this transaction fails, and the next ones, without, take its puts."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            why = raise_unless_damage(error)
            self._prunes = False
            log.error("duplicate window is damaged; message_ids are no longer evicted from it", why=why)  # noqa: TRY400
            raise

    def _prune(self, change: Counts, most: int, horizon: int) -> None:
        """Delete up to `most` ids beyond the window's count, and some of those beyond its time, oldest first.

        That is twice as many as are inserted, so that an oversized window shrinks to its bound without a pause.
        """
        excess = self.counts.seen + change.seen - self._window_ids
        if excess > 0:
            gone = self._connection.execute(
                "DELETE FROM seen WHERE id <= (SELECT id FROM seen ORDER BY id LIMIT 1 OFFSET ?)",
                (min(excess, most) - 1,),
            ).rowcount
            self._evicting += gone
            change.seen -= gone
        if self._has_expired(horizon):
            change.seen -= self._connection.execute(
                "DELETE FROM seen WHERE id IN (SELECT id FROM seen ORDER BY id LIMIT ?) AND at < ?", (most, horizon)
            ).rowcount

    def _has_expired(self, horizon: int) -> bool:
        oldest = self._connection.execute("SELECT at FROM seen ORDER BY id LIMIT 1").fetchone()
        return bool(oldest and oldest[0] < horizon)

    def _newest_event(self) -> int:
        try:
            return int(self._one("SELECT max(id) FROM event")[0] or 0)
        except sqlite3.DatabaseError as error:
            raise_unless_damage(error)
            return 0  # the newest page is damaged, and no event can be put behind it: the others are delivered

    def _newest_seen(self) -> int:
        return int(self._one("SELECT max(id) FROM seen")[0] or 0)

    def _one(self, statement: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._connection.execute(statement).fetchone()
        return row
