"""Check of the counters against the rows that they count, in slices between group commits, after each opening."""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import structlog

from service.outbox.sqlite.damage import raise_unless_damage
from service.outbox.sqlite.group_commit import Counts

SLICE = 500  # rows counted at a time, in well below a millisecond if they are in the cache

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Table:
    """A table, the counters of its rows, and expressions of SQL on a row."""

    name: str
    rows: str
    """The counter of its rows, a field of Counts, as is `bytes`."""
    bytes: str | None
    """The counter of their sizes, if there is one."""
    size: str = "0"
    time: str = "0"
    """Milliseconds since the epoch; never in the future, unless the clock was."""


TABLES = (
    Table("event", "events", "bytes", size="length(payload)"),
    Table("seen", "seen", None, time="at"),
    Table("dead_letter", "dead_letters", None),
)


class CounterCheck:
    """Counts the rows of each table by rising id, while rows come and go.

    New rows have higher ids than all others. Rows that were counted and are deleted since are subtracted by a trigger,
    within the transaction that deletes them.

    On its way it sets times of the duplicate window that are in the future to the present, so that they do expire: they
    were stored while the clock was wrong.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        transaction: Callable[[], AbstractContextManager[Counts]],
        counts: Callable[[], Counts],
    ) -> None:
        """Begin a check. Used on the writer's thread only.

        Args:
            connection: to the outbox file.
            transaction: begins one; the changes to the counters are added to the Counts that it yields.
            counts: returns the counters.
        """
        self._connection = connection
        self._transaction = transaction
        self._counts = counts
        self._tables = list(TABLES)
        self._is_counting = False  # the first of `_tables` is being counted

    @property
    def is_done(self) -> bool:
        """True once every table was checked."""
        return not self._tables

    def restart(self) -> None:
        """Check everything again."""
        self._tables, self._is_counting = list(TABLES), False

    def step(self, now: int) -> bool:
        """Count some rows; return True if a counter was wrong, and was repaired. `now` is in milliseconds.

        Raises:
            OutboxUnavailableError: the disk refuses writes; the next call goes on.
        """
        table = self._tables[0]
        try:
            if not self._is_counting:
                self._start_counting(table)
            if self._count(table, now):
                return False
        except sqlite3.DatabaseError as error:
            log.warning("cannot count the rows of a table", table=table.name, why=raise_unless_damage(error))
            is_repaired = False
        else:
            is_repaired = self._compare(table)
        self._stop_counting()
        self._tables.pop(0)
        return is_repaired

    def _start_counting(self, table: Table) -> None:
        self._stop_counting()  # of an earlier start that failed halfway, or of a check that was begun again
        size = table.size.replace("payload", "old.payload")
        self._connection.execute("CREATE TEMP TABLE counted (up_to INTEGER, row_count INTEGER, size INTEGER)")
        self._connection.execute("INSERT INTO counted VALUES (0, 0, 0)")
        self._connection.execute(
            f"CREATE TEMP TRIGGER uncount AFTER DELETE ON main.{table.name}"  # noqa: S608  constants
            " WHEN old.id <= (SELECT up_to FROM counted)"
            f" BEGIN UPDATE counted SET row_count = row_count - 1, size = size - {size}; END"
        )
        self._is_counting = True

    def _stop_counting(self) -> None:
        self._connection.execute("DROP TRIGGER IF EXISTS temp.uncount")
        self._connection.execute("DROP TABLE IF EXISTS temp.counted")
        self._is_counting = False

    def _count(self, table: Table, now: int) -> bool:
        """Count a slice; return True if there are more."""
        up_to = self._one("SELECT up_to FROM counted")[0]
        rows, size, last, latest = self._one(
            f"SELECT count(*), total(size), max(id), max(time) FROM (SELECT id, {table.size} AS size,"  # noqa: S608
            f" {table.time} AS time FROM {table.name} WHERE id > ? ORDER BY id LIMIT {SLICE})",
            up_to,
        )
        if not rows:
            return False
        if latest > now:
            with self._transaction():
                self._connection.execute(
                    f"UPDATE {table.name} SET {table.time} = ?1"  # noqa: S608
                    f" WHERE id > ?2 AND id <= ?3 AND {table.time} > ?1",
                    (now, up_to, last),
                )
        self._connection.execute(
            "UPDATE counted SET row_count = row_count + ?, size = size + ?, up_to = ?", (rows, round(size), last)
        )
        return bool(rows == SLICE)

    def _compare(self, table: Table) -> bool:
        """Compare the counters of a table with what was counted, and repair them; return True if they were wrong."""
        rows, size = self._one("SELECT row_count, size FROM counted")
        counters = self._counts()
        wrong = {table.rows: rows - getattr(counters, table.rows)}
        if table.bytes is not None:
            wrong[table.bytes] = size - getattr(counters, table.bytes)
        if not any(wrong.values()):
            return False
        with self._transaction() as change:
            for name, by in wrong.items():
                setattr(change, name, by)
        log.error("counters of the outbox were wrong; repaired them", changes=wrong)
        return True

    def _one(self, statement: str, *parameters: object) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._connection.execute(statement, parameters).fetchone()
        return row
