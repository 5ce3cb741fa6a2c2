"""Errors of the disk of an outbox file: damage, a full disk or quota, and every other refusal."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable

from service.errors import OutboxDamagedError, OutboxFullError, OutboxUnavailableError
from service.outbox.capacity import DELAY

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
TRIAL_SIZE = 64 * 1024  # bytes; more than the block that the lock file may have already


def primary_code(error: sqlite3.Error) -> int:
    """Return the primary code of an error of SQLite; SQLITE_ERROR where it has none."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def disk_error(error: sqlite3.DatabaseError, no_space: Callable[[], bool]) -> OutboxUnavailableError:
    """Translate an error with which SQLite refused a write, or a read.

    Args:
        error: of SQLite, which gives a full disk a code of its own, but a quota that of every I/O error.
        no_space: tries to write to the same disk; True if it has no space, or no quota, left.
    """
    code = primary_code(error)
    if code in DAMAGE:
        return OutboxDamagedError(f"the outbox file is damaged: {error}", DELAY)
    text = f"the disk of the outbox refuses writes: {error}"
    is_full = code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and no_space())
    return (OutboxFullError if is_full else OutboxUnavailableError)(text, DELAY)


def has_no_space(descriptor: int) -> bool:
    """Extend a file on the disk and cut it back; True if there is no space, or none of the user's quota, left for it.

    Args:
        descriptor: of the lock file, whose content is not changed.
    """
    size = os.fstat(descriptor).st_size
    try:
        return os.pwrite(descriptor, b" " * TRIAL_SIZE, size) < TRIAL_SIZE
    except OSError as error:
        return error.errno in NO_SPACE
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
