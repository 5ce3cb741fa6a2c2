"""Opens and locks the SQLite file of the outbox, and creates or migrates its schema. Refuses a foreign file."""

import contextlib
import fcntl
import importlib.resources
import os
import sqlite3
from pathlib import Path

from service.errors import OutboxUnusableError

APPLICATION_ID = 0x50444F42  # "PDOB" in the file's header
SCHEMA_VERSION = 4
OLDEST_VERSION = 1  # each schema_N.sql migrates from version N - 1
CACHE_SIZE = 16  # MiB of pages
CHECKPOINT_PAGES = 4000  # 16 MiB of log; fewer checkpoints write a hot page fewer times


def take_lock(path: Path) -> int:
    """Lock the outbox, as SQLite itself would let two servers in; return the descriptor of the lock file.

    The lock is on a separate file, because closing any descriptor of the database file would drop SQLite's locks.

    Raises:
        OutboxUnusableError: another server holds the lock, or the lock file cannot be created.
    """
    name = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"outbox {path}: cannot create {name}: {error.strerror}; the folder must exist and be writable"
        raise OutboxUnusableError(message) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        message = (
            f"outbox {path}: in use by another server (process {holder}); stop it, or give this one another"
            " POINTILLIST_OUTBOX_URL"
        )
        raise OutboxUnusableError(message) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, creating it if it does not exist.

    Raises:
        OutboxUnusableError: the file is foreign, damaged, of a newer version, or cannot be opened.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # readable by its owner only
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    except (OSError, sqlite3.Error) as error:
        message = f"outbox {path}: cannot be opened: {error}; it must be a file that this user can read and write"
        raise OutboxUnusableError(message) from error
    try:
        _check(connection, path)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"cache_size = -{CACHE_SIZE * 1024}",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            f"journal_size_limit = {4 * CHECKPOINT_PAGES * 4096}",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        _migrate(connection)
    except sqlite3.Error as error:
        connection.close()
        raise damaged(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def damaged(path: Path, error: sqlite3.Error) -> OutboxUnusableError:
    """Return the error for a file that SQLite cannot read."""
    return OutboxUnusableError(
        f"outbox {path}: {error}; it is damaged or not an outbox. Move it away together with its -wal file"
        " (docs/runbook.md describes how to save its events), or set POINTILLIST_OUTBOX_URL to another file"
    )


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open the file read-only, also while a server has it open.

    Raises:
        OutboxUnusableError: the file is foreign, damaged, of another version, or cannot be opened.
    """
    with contextlib.ExitStack() as on_failure:
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
            on_failure.callback(connection.close)
            _check(connection, path)
            version = _pragma(connection, "user_version")
        except sqlite3.Error as error:
            raise OutboxUnusableError(f"outbox {path}: {error}; it is damaged, or not an outbox") from error
        if version != SCHEMA_VERSION:
            raise OutboxUnusableError(f"outbox {path}: of an earlier version; the next start of serve migrates it")
        on_failure.pop_all()
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a foreign database and one of a newer version; a new, empty one is accepted."""
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables == 0 and application in {0, APPLICATION_ID}:
        return
    if application != APPLICATION_ID:
        message = f"outbox {path}: this is another program's database; set POINTILLIST_OUTBOX_URL to another file"
        raise OutboxUnusableError(message)
    if version > SCHEMA_VERSION:
        message = (
            f"outbox {path}: written by a newer version (schema {version}; this one supports up to {SCHEMA_VERSION});"
            " run that version, or a newer one"
        )
        raise OutboxUnusableError(message)


def _migrate(connection: sqlite3.Connection) -> None:
    """Migrate the schema to this version, in one transaction."""
    version = _pragma(connection, "user_version")
    if version == SCHEMA_VERSION:
        return
    steps = range(max(version, OLDEST_VERSION) + 1, SCHEMA_VERSION + 1)
    names = ["schema.sql"] if version == 0 else [f"schema_{step}.sql" for step in steps]
    folder = importlib.resources.files("service.outbox.sqlite")
    scripts = " ".join(folder.joinpath(name).read_text() for name in names)
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE; {scripts} PRAGMA application_id = {APPLICATION_ID};"
            f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    except sqlite3.Error:
        connection.rollback()
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
