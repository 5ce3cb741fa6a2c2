"""Events of the outbox file that are leased: those that were fetched and are not settled yet."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from service.outbox.base import Pick, Stored
from service.outbox.sqlite.damage import Damage, Row, raise_unless_damage, rebuild_due_index

log = structlog.get_logger()

STORED = "id, message_id, payload, accepted_at, queued_at, attempts, first_attempt_at, traceparent"
SELECT_NEW = f"SELECT {STORED} FROM event WHERE id > ? AND due_at IS NULL ORDER BY id LIMIT ?"  # noqa: S608
SELECT_NEWEST = f"SELECT {STORED} FROM event WHERE id > ? AND due_at IS NULL ORDER BY id DESC LIMIT ?"  # noqa: S608
SELECT_ONE = f"SELECT {STORED} FROM event WHERE id = ?"  # noqa: S608
SELECT_OLDEST = "SELECT id, accepted_at FROM event WHERE id > ? ORDER BY id LIMIT ?"
SELECT_DUE = "SELECT id, due_at FROM event WHERE due_at IS NOT NULL ORDER BY due_at LIMIT ?"  # its index has both


class Leases:
    """The leases of one process. They are in memory: after a restart every pending event can be fetched again.

    Used on the writer's thread, but for `cursor`.
    """

    def __init__(self, connection: sqlite3.Connection, newest_id: Callable[[], int]) -> None:
        """Lease the events of an open outbox file.

        Args:
            connection: to the file.
            newest_id: returns an id that no event is above.
        """
        self._connection = connection
        self._newest_id = newest_id
        self.cursor = 0
        """The highest id of a new event that was leased; new events with higher ids were not."""
        self._leased: set[int] = set()
        self._has_leases_above = False  # there may be leases above the cursor
        self._has_rebuilt = False
        self._unreadable_until = 0  # no event up to this id can be read
        self.damage = Damage()

    def release(self, settled: Iterable[Stored]) -> None:
        """Drop the leases of events whose settlement is committed."""
        self._leased.difference_update([event.id for event in settled])

    def give_back(self, released: Sequence[Stored]) -> None:
        """End the leases of events that stay as they were."""
        self.release(released)
        new = [event.id for event in released if not event.attempts]
        if new and min(new) <= self.cursor:
            self.cursor = min(new) - 1
            self._has_leases_above = True

    def fetch(self, limit: int, pick: Pick, now: int, latest: int) -> list[Stored]:
        """Lease up to `limit` events.

        Args:
            limit: maximum number of events.
            pick: the events to lease.
            now: milliseconds; events with a due time up to this are due.
            latest: milliseconds; a later due time must be wrong (the clock was set back) and counts as due.
        """
        match pick:
            case Pick.NEW:
                return self._fetch_new(limit)
            case Pick.NEWEST:
                return self._fetch_newest(limit)
            case Pick.TRIED:
                return self._fetch_tried(limit, "due_at > ?", 0)
        events = self._fetch_tried(limit, "due_at <= ?", now)
        events += self._fetch_tried(limit - len(events), "due_at > ?", latest)
        return events if pick is Pick.DUE else events + self._fetch_new(limit - len(events))

    def _fetch_tried(self, limit: int, which: str, bound: int) -> list[Stored]:
        if not limit:
            return []
        leased = self._leased
        statement = f"FROM event WHERE {which} ORDER BY due_at LIMIT ?"
        parameters = (bound, limit + len(leased))
        try:
            rows = self._connection.execute(f"SELECT {STORED} {statement}", parameters).fetchall()
        except sqlite3.DatabaseError as error:
            why = raise_unless_damage(error)
            ids = [row[0] for row in self._by_due(f"SELECT id {statement}", parameters)]
            rows = self._readable([id_ for id_ in ids if id_ not in leased][:limit], why)
        return self._lease(self._free(rows, limit))

    def _readable(self, ids: Sequence[int], why: str) -> list[Any]:
        """Read events one by one; those that cannot be read are passed over, and leased, until a restart."""
        rows: list[Any] = []
        unreadable: list[int] = []
        for id_ in ids:
            try:
                rows += self._connection.execute(SELECT_ONE, (id_,)).fetchall()
            except sqlite3.DatabaseError as error:
                why = raise_unless_damage(error)
                unreadable.append(id_)
        self._leased.update(unreadable)
        self.damage.note(unreadable, why)
        return rows

    def _by_due(self, statement: str, parameters: tuple[int, ...]) -> list[Any]:
        """Read from the index of due times alone, which is built again, once, if it is damaged."""
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            why = raise_unless_damage(error)
            if self._has_rebuilt:
                raise
        self._has_rebuilt = True
        log.error("index of due times is damaged; building it again", why=why)
        rebuild_due_index(self._connection)
        return self._connection.execute(statement, parameters).fetchall()

    def _fetch_new(self, limit: int) -> list[Stored]:
        """Lease new events, which have ids above the cursor, so that events leased before are not read again.

        At the end the cursor moves to the highest id, so that events that await redelivery are not scanned each time.
        """
        most = limit + self._leases_above()
        rows = self.damage.read(self._select_new, self.cursor, most, self._newest_id())
        taken = rows if most == limit else self._free(rows, limit)
        if len(taken) < limit and len(rows) < most:
            self.cursor = self._newest_id()
            self._has_leases_above = False
        elif taken:
            self.cursor = taken[-1][0]
        return self._lease(taken)

    def _select_new(self, after: int, limit: int) -> list[Any]:
        return self._connection.execute(SELECT_NEW, (after, limit)).fetchall()

    def _fetch_newest(self, limit: int) -> list[Stored]:
        """Lease new events from the other end; the cursor passes them later."""
        try:
            rows = self._connection.execute(SELECT_NEWEST, (self.cursor, limit + self._leases_above())).fetchall()
        except sqlite3.DatabaseError as error:
            raise_unless_damage(error)
            return []  # a damaged page is passed over from the other side
        self._has_leases_above = True
        return self._lease(self._free(rows, limit))

    def _free(self, rows: Sequence[Row], limit: int) -> Sequence[Row]:
        """Return the first rows of events that are not leased."""
        return [row for row in rows if row[0] not in self._leased][:limit]

    def _leases_above(self) -> int:
        """Return the number of leases above the cursor, which a reader of new events skips."""
        return sum(id_ > self.cursor for id_ in self._leased) if self._has_leases_above else 0

    def _lease(self, rows: Sequence[Row]) -> list[Stored]:
        events = [Stored(*row) for row in rows]
        self._leased.update([event.id for event in events])
        return events

    def next_due(self) -> int | None:
        """Return the earliest due time of the events that await redelivery, in milliseconds; None if there is none."""
        rows = self._by_due(SELECT_DUE, (len(self._leased) + 1,))
        return next((due_at for id_, due_at in rows if id_ not in self._leased), None)

    def oldest_at(self) -> int | None:
        """Return the acceptance time of the oldest event that can be read, in milliseconds since the epoch, if any."""
        newest = self._newest_id()
        rows = self.damage.read(self._select_oldest, self._unreadable_until, 1, newest)
        if self.damage.ids:
            self._unreadable_until = rows[0][0] - 1 if rows else newest
        return int(rows[0][1]) if rows else None

    def _select_oldest(self, after: int, limit: int) -> list[Any]:
        return self._connection.execute(SELECT_OLDEST, (after, limit)).fetchall()
