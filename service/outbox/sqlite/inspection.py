"""Inspects the SQLite file of an outbox, read-only, also while a server has it open."""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from service.errors import OutboxUnusableError
from service.outbox.sqlite.opening import open_read_only

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
            problems = tuple(row[0] for row in connection.execute("PRAGMA integrity_check(3)"))
            events, size, dead_letters = connection.execute(
                "SELECT events, bytes, dead_letters FROM counter"
            ).fetchone()
            oldest = connection.execute("SELECT accepted_at, attempts FROM event ORDER BY id LIMIT 1").fetchone()
            reasons = connection.execute(
                "SELECT reason, count(*) FROM dead_letter GROUP BY reason ORDER BY count(*) DESC LIMIT ?",
                (MAX_REASONS,),
            )
            return Inspection(
                problems if problems != ("ok",) else (), events, size, oldest, dead_letters, tuple(reasons.fetchall())
            )
        except sqlite3.Error as error:
            raise OutboxUnusableError(f"outbox {path}: {error}") from error
