"""Inspects the SQLite file of an outbox, read-only, also while a server has it open."""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.outbox.sqlite.damage import raise_unless_damage
from service.outbox.sqlite.opening import open_read_only, unusable

MAX_REASONS = 5


@dataclass(frozen=True, slots=True)
class Inspection:
    """The content of an outbox file."""

    problems: tuple[str, ...]
    """Findings of SQLite's integrity check."""
    events: int
    bytes: int
    oldest: tuple[int, int] | None
    """Acceptance time, in milliseconds since the epoch, and attempts of the oldest pending event."""
    dead_letters: int
    reasons: tuple[tuple[str, int], ...]
    """The commonest reasons of dead letters, with their counts."""


def inspect_file(path: Path) -> Inspection:
    """Inspect a file; nothing in it changes.

    Raises:
        OutboxUnusableError: it cannot be read.
    """
    with contextlib.closing(open_read_only(path)) as connection:
        try:
            problems = tuple(row[0] for row in _readable(connection, "PRAGMA integrity_check(3)"))
            events, size, dead_letters = connection.execute(
                "SELECT events, bytes, dead_letters FROM counter"
            ).fetchone()
            oldest = _readable(connection, "SELECT accepted_at, attempts FROM event ORDER BY id LIMIT 1")
            reasons = _readable(
                connection,
                "SELECT reason, count(*) FROM dead_letter GROUP BY reason ORDER BY count(*) DESC LIMIT ?",
                MAX_REASONS,
            )
        except sqlite3.Error as error:
            raise unusable(path, error) from error
        return Inspection(
            () if problems == ("ok",) else problems or ("SQLite's own check met a damaged page",),
            events,
            size,
            oldest[0] if oldest else None,
            dead_letters,
            tuple(reasons),
        )


def _readable(connection: sqlite3.Connection, statement: str, *parameters: object) -> list[Any]:
    """Return the rows of a statement; none if it meets a damaged page, which is among the problems."""
    try:
        return connection.execute(statement, parameters).fetchall()
    except sqlite3.DatabaseError as error:
        raise_unless_damage(error)
        return []
