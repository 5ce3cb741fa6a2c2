"""Opens the SQLite file of the outbox, and creates or migrates its schema. Refuses a foreign file."""

import contextlib
import importlib.resources
import sqlite3
from pathlib import Path

from service.errors import OutboxUnusableError
from service.outbox.sqlite.disk import primary_code
from service.outbox.sqlite.write_ahead_log import RESTING_SIZE, WriteAheadLog

APPLICATION_ID = 0x50444F42  # "PDOB" in the file's header
SCHEMA_VERSION = 5
OLDEST_VERSION = 1  # each schema_N.sql migrates from version N - 1
CACHE_SIZE = 16  # MiB of pages

MIN_SQLITE = (3, 37, 0)  # the first with STRICT tables
MOVE_IT_AWAY = (
    "Move it away together with its -wal file (docs/runbook.md describes how to save its events), or set"
    " POINTILLIST_OUTBOX_URL to another file"
)
ADVICE = {
    sqlite3.SQLITE_CORRUPT: f"it is damaged. {MOVE_IT_AWAY}",
    sqlite3.SQLITE_NOTADB: f"it is damaged or not an outbox. {MOVE_IT_AWAY}",
    sqlite3.SQLITE_FULL: "the disk is full, and the file is not damaged: free some space and start again",
    sqlite3.SQLITE_READONLY: "it or its folder cannot be written, and it is not damaged: check the permissions",
    sqlite3.SQLITE_BUSY: "another program has locked it, and it is not damaged: end that program, or wait for it",
    sqlite3.SQLITE_IOERR: "the disk failed, which does not mean that the file is damaged: leave it, and check the disk",
    sqlite3.SQLITE_CANTOPEN: "it must be a file, in a folder, that this user can read and write",
}
OTHER_ADVICE = "leave the file where it is; docs/runbook.md describes how to examine it"


def open_database(path: Path) -> tuple[sqlite3.Connection, WriteAheadLog]:
    """Open the file, which exists, and its write-ahead log, and create its schema if it is empty.

    Raises:
        OutboxUnusableError: the file is foreign, damaged, of a newer version, or cannot be opened, or SQLite is too
            old.
    """
    _check_library(path)
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    write_ahead_log: WriteAheadLog | None = None
    try:
        _check(connection, path)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"cache_size = -{CACHE_SIZE * 1024}",
            "wal_autocheckpoint = 0",
            f"journal_size_limit = {RESTING_SIZE}",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        _pragma(connection, "user_version")  # reads the log
        write_ahead_log = WriteAheadLog(connection, path)
        _migrate(connection)
    except BaseException as error:
        connection.close()
        if write_ahead_log is not None:
            write_ahead_log.close()
        if isinstance(error, sqlite3.Error):
            raise unusable(path, error) from error
        raise
    return connection, write_ahead_log


def unusable(path: Path, error: sqlite3.Error) -> OutboxUnusableError:
    """Return the error for a file on which SQLite failed; only two of its codes mean that the file is damaged."""
    return OutboxUnusableError(f"outbox {path}: {error}; {ADVICE.get(primary_code(error), OTHER_ADVICE)}")


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open the file read-only, also while a server has it open.

    Raises:
        OutboxUnusableError: the file is foreign, damaged, of another version, or cannot be opened.
    """
    _check_library(path)
    with contextlib.ExitStack() as on_failure:
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
            on_failure.callback(connection.close)
            _check(connection, path)
            version = _pragma(connection, "user_version")
        except sqlite3.Error as error:
            raise unusable(path, error) from error
        if version != SCHEMA_VERSION:
            raise OutboxUnusableError(f"outbox {path}: of an earlier version; the next start of serve migrates it")
        on_failure.pop_all()
    return connection


def _check_library(path: Path) -> None:
    """Refuse a SQLite that does not know STRICT tables, and would call every outbox a damaged one."""
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        message = (
            f"outbox {path}: SQLite {sqlite3.sqlite_version} is too old: needed is {'.'.join(map(str, MIN_SQLITE))} or"
            " newer; use a Python that has it, or an outbox on NATS. Nothing is wrong with the file"
        )
        raise OutboxUnusableError(message)


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
