"""The dead letters of an outbox file: the statements on their table, and the DeadLetters of the server."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from service.events.message import filter_values
from service.outbox.base import UNREADABLE, DeadLetter, DeadLetterFilter, Refusal, Replayed, Stored
from service.outbox.sqlite.group_commit import Counts

NEWEST = 2**63 - 1  # above every id
MAX_MOVED = 500  # dead letters moved or deleted in one transaction
MAX_EXAMINED = 5000  # dead letters examined per read, so that other work of the writer is not held up for long
COLUMNS = (
    "id, message_id, payload, accepted_at, reason, status, detail, attempts, first_attempt_at, last_attempt_at,"
    " traceparent"
)

Result = TypeVar("Result")


class Read(Protocol):
    """Runs a function on the writer's thread, after the next commit."""

    def __call__(self, function: Callable[[], Result], /) -> Awaitable[Result]:
        """Return the function's result."""


class Write(Protocol):
    """Runs a function on the writer's thread, in the next transaction."""

    def __call__(self, function: Callable[[Counts], Result], /) -> Awaitable[Result]:
        """Return the function's result once the transaction is on disk."""


class DeadLetterTable:
    """The statements on the table `dead_letter`. Used on the writer's thread only."""

    def __init__(self, connection: sqlite3.Connection, requeue: Callable[[DeadLetter, int], None]) -> None:
        """Use an open connection.

        Args:
            connection: to the outbox file.
            requeue: stores a dead letter's event at the end of the queue, queued at a time in milliseconds.
        """
        self._connection = connection
        self._requeue = requeue

    def add(self, stored: Stored, refusal: Refusal, now: int) -> None:
        """Store a dead letter; `now` is in milliseconds. Within a transaction."""
        type_, user_id, anonymous_id = filter_values(stored.payload)
        self._connection.execute(
            "INSERT INTO dead_letter (message_id, payload, accepted_at, reason, status, detail, attempts,"
            " first_attempt_at, last_attempt_at, event_type, user_id, anonymous_id, traceparent)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                stored.message_id,
                stored.payload,
                stored.accepted_at,
                refusal.reason,
                refusal.status,
                refusal.detail,
                stored.attempts + 1,
                stored.first_attempt_at or now,
                now,
                type_,
                user_id,
                anonymous_id,
                stored.traceparent,
            ),
        )

    def newest(self) -> int:
        """Return the highest id of a dead letter; 0 if there is none."""
        row = self._connection.execute("SELECT max(id) FROM dead_letter").fetchone()
        return int(row[0] or 0)

    def refusal(self, message_id: str) -> Refusal | None:
        """Return the reason why an event is a dead letter; None if it is none."""
        row = self._connection.execute(
            "SELECT reason, status, detail FROM dead_letter WHERE message_id = ? ORDER BY id DESC LIMIT 1",
            (message_id,),
        ).fetchone()
        return Refusal(*row) if row else None

    def page(
        self, which: DeadLetterFilter, after: int, limit: int, newest: int = NEWEST
    ) -> tuple[list[DeadLetter], int]:
        """Return up to `limit` of the next dead letters, by rising id, and the id to continue after.

        At most MAX_EXAMINED rows are examined, so fewer than `limit`, or none, does not mean that there are no more.

        Args:
            which: the dead letters wanted.
            after: the id to continue after; 0 to begin with.
            limit: maximum number to return.
            newest: the highest id wanted; once it is returned as the id to continue after, there are no more.
        """
        until = self._examined_until(which, after, newest)
        condition, parameters = _where(which, after, until)
        rows = self._connection.execute(
            f"SELECT {COLUMNS} FROM dead_letter WHERE {condition} ORDER BY id LIMIT ?",  # noqa: S608
            (*parameters, limit),
        )
        letters = [_dead_letter(row) for row in rows]
        return letters, letters[-1].id if len(letters) == limit else until

    def replay(
        self, which: DeadLetterFilter, after: int, newest: int, now: int, change: Counts
    ) -> tuple[Replayed, int]:
        """Move some dead letters to the end of the queue, but for unreadable ones. Within a transaction.

        Returns the numbers moved and left, and the id to continue after, as `page` does.
        """
        page, reached = self.page(which, after, MAX_MOVED, newest)
        letters = [letter for letter in page if letter.refusal.reason != UNREADABLE]
        for letter in letters:
            self._requeue(letter, now)
            self._connection.execute("DELETE FROM dead_letter WHERE id = ?", (letter.id,))
        change.events += len(letters)
        change.bytes += sum(len(letter.payload) for letter in letters)
        change.dead_letters -= len(letters)
        return Replayed(len(letters), len(page) - len(letters)), reached

    def delete(self, which: DeadLetterFilter, after: int, newest: int, change: Counts) -> tuple[int, int]:
        """Delete some dead letters. Within a transaction.

        Returns the number deleted and the id to continue after, as `page` does.
        """
        until = self._examined_until(which, after, newest)
        until = self._nth(*_where(which, after, until), MAX_MOVED) or until
        condition, parameters = _where(which, after, until)
        count = self._connection.execute(f"DELETE FROM dead_letter WHERE {condition}", parameters).rowcount  # noqa: S608
        change.dead_letters -= count
        return count, until

    def _examined_until(self, which: DeadLetterFilter, after: int, newest: int) -> int:
        """Return the highest id to examine now; dead letters named by their ids are found without a search."""
        if which.ids is not None:
            return newest
        return self._nth("id > ? AND id <= ?", [after, newest], MAX_EXAMINED) or newest

    def _nth(self, condition: str, parameters: list[Any], number: int) -> int | None:
        """Return the id of the nth dead letter that meets a condition."""
        row = self._connection.execute(
            f"SELECT id FROM dead_letter WHERE {condition} ORDER BY id LIMIT 1 OFFSET ?",  # noqa: S608
            (*parameters, number - 1),
        ).fetchone()
        return row and int(row[0])


class SqliteDeadLetters:
    """The DeadLetters of an outbox file. See DeadLetters."""

    def __init__(
        self,
        table: DeadLetterTable,
        *,
        read: Read,
        write: Write,
        check_capacity: Callable[[], None],
        now: Callable[[], int],
    ) -> None:
        """Create it on the event loop that uses it.

        Args:
            table: the statements.
            read: runs a function that only reads.
            write: runs a function that changes the file.
            check_capacity: raises OutboxFullError while no event may be added to the queue.
            now: milliseconds since the epoch, by the corrected clock.
        """
        self._table = table
        self._read = read
        self._write = write
        self._check_capacity = check_capacity
        self._now = now

    async def list(self, which: DeadLetterFilter, *, after: int, limit: int) -> Sequence[DeadLetter]:
        """Return dead letters by rising id. See DeadLetters.list."""
        letters: list[DeadLetter] = []
        while after < NEWEST and len(letters) < limit:
            some, after = await self._read(partial(self._table.page, which, after, limit - len(letters)))
            letters += some
        return letters

    async def replay(self, which: DeadLetterFilter) -> Replayed:
        """Move dead letters to the queue. See DeadLetters.replay.

        Each transaction moves some; after a crash in between, every letter is in exactly one of the two places.
        """
        self._check_capacity()
        now = self._now()

        def replay(after: int, newest: int, change: Counts) -> tuple[Replayed, int]:
            return self._table.replay(which, after, newest, now, change)

        some = [replayed async for replayed in self._repeat(replay)]
        return Replayed(sum(replayed.moved for replayed in some), sum(replayed.left for replayed in some))

    async def delete(self, which: DeadLetterFilter) -> int:
        """Delete dead letters for good. See DeadLetters.delete."""
        return sum([count async for count in self._repeat(partial(self._table.delete, which))])

    async def _repeat(self, some: Callable[[int, int, Counts], tuple[Result, int]]) -> AsyncIterator[Result]:
        """Process the dead letters that exist now, in as many transactions as it takes; later ones are left out."""
        newest = await self._read(self._table.newest)
        after = 0
        while after < newest:
            result, after = await self._write(partial(some, after, newest))
            yield result


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    """Make a dead letter from a row of COLUMNS."""
    id_, message_id, payload, accepted_at, reason, status, detail, *rest = row
    return DeadLetter(id_, message_id, payload, accepted_at, Refusal(reason, status, detail), *rest)


def _where(which: DeadLetterFilter, after: int, until: int) -> tuple[str, list[Any]]:
    """Return the SQL condition for a filter, with ids above `after` and up to `until`, and its parameters."""
    conditions: list[str] = []
    parameters: list[Any] = []

    def add(condition: str, *values: object) -> None:
        conditions.append(condition)
        parameters.extend(values)

    add("id > ? AND id <= ?", after, until)
    if which.ids is not None:
        add(f"id IN ({','.join('?' * len(which.ids))})", *which.ids)
    if which.reason is not None:
        add("reason = ?", which.reason)
    if which.event_type is not None:
        add("event_type = ?", which.event_type)
    if which.user_id is not None:
        add("(user_id = ? OR anonymous_id = ?)", which.user_id, which.user_id)
    if which.since is not None:
        add("last_attempt_at >= ?", which.since)
    if which.until is not None:
        add("last_attempt_at < ?", which.until)
    return " AND ".join(conditions), parameters
