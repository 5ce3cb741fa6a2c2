"""Reading around damaged pages of the outbox file: one page that cannot be read costs the events on it, and no other.

SQLite fails with SQLITE_CORRUPT when a statement reaches a damaged page, and goes on working elsewhere.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from service.outbox.sqlite.disk import DAMAGE, primary_code

log = structlog.get_logger()

Row = tuple[Any, ...]
Select = Callable[[int, int], Sequence[Row]]
"""Return up to a number of rows with an id above another, by rising id; the id comes first in each."""


def raise_unless_damage(error: sqlite3.DatabaseError) -> str:
    """Return the words of an error that means damage; raise any other."""
    if primary_code(error) not in DAMAGE:
        raise error
    return str(error)


def rebuild_due_index(connection: sqlite3.Connection) -> None:
    """Build the index of due times again, and leave the pages of the damaged one unused.

    REINDEX and DROP INDEX would read them.
    """
    definition = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_due'").fetchone()[0]
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_schema WHERE name = 'event_due'")
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute(definition)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA writable_schema = RESET")
            connection.execute("ROLLBACK")
        raise


class Damage:
    """The ids of events that this process could not read."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        """Ids on damaged pages. Some may never have been pending: a page tells the ids on it only if it can be read."""

    def read(self, select: Select, after: int, limit: int, last: int) -> Sequence[Row]:
        """Return up to `limit` rows with ids above `after`, passing over those that cannot be read.

        Events with ids that follow one another share a page. The ids of a damaged one are tried one by one: some
        dozens.

        Args:
            select: reads.
            after: the id to begin behind.
            limit: maximum number of rows.
            last: an id that no row is above.
        """
        try:
            return select(after, limit)
        except sqlite3.DatabaseError as error:
            why = raise_unless_damage(error)
        rows: list[Row] = []
        passed: list[int] = []
        size = limit
        while len(rows) < limit and after < last:
            wanted = min(size, limit - len(rows))
            try:
                some = select(after, wanted)
            except sqlite3.DatabaseError as error:
                why = raise_unless_damage(error)
                if wanted == 1:
                    after += 1
                    passed.append(after)
                size = max(1, wanted // 2)
                continue
            rows += some
            after = some[-1][0] if len(some) == wanted else last
            size *= 2
        self.note(passed, why)
        return rows

    def note(self, ids: Sequence[int], why: str) -> None:
        """Count ids of events that could not be read, and log those that are new."""
        new = [id_ for id_ in ids if id_ not in self.ids]
        if not new:
            return
        self.ids.update(new)
        log.error(
            "cannot read events on a damaged page of the outbox; delivering the others",
            first_id=min(new),
            last_id=max(new),
            ids=len(new),
            why=why,
            advice="run pointillist-destination doctor; docs/runbook.md describes how to save the events of the file",
        )
