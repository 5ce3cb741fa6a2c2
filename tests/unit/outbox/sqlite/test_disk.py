"""Errors of the disk under an outbox file."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import OutboxDamagedError, OutboxFullError, OutboxUnavailableError
from service.outbox.sqlite.disk import disk_error, has_no_space
from tests.support.outboxes import sqlite_error


def never() -> bool:
    raise AssertionError


@pytest.fixture
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_a_full_disk_is_a_bound() -> None:
    error = disk_error(sqlite_error(sqlite3.SQLITE_FULL), never)
    assert isinstance(error, OutboxFullError)
    assert (error.reason, error.retry_after) == ("the disk of the outbox refuses writes: words of SQLite", 1.0)


def test_an_io_error_of_a_disk_without_space_is_a_bound() -> None:
    assert isinstance(disk_error(sqlite_error(sqlite3.SQLITE_IOERR_WRITE), lambda: True), OutboxFullError)


def test_an_io_error_of_a_disk_with_space_is_none() -> None:
    assert type(disk_error(sqlite_error(sqlite3.SQLITE_IOERR_WRITE), lambda: False)) is OutboxUnavailableError


@pytest.mark.parametrize("code", [sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN])
def test_any_other_error_is_none(code: int) -> None:
    assert type(disk_error(sqlite_error(code), never)) is OutboxUnavailableError


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_NOTADB])
def test_damage_is_told_from_a_disk_that_refuses(code: int) -> None:
    error = disk_error(sqlite_error(code), never)
    assert type(error) is OutboxDamagedError
    assert "damaged" in error.reason


def test_an_error_without_a_code_is_none() -> None:
    assert type(disk_error(sqlite3.ProgrammingError("closed"), never)) is OutboxUnavailableError


def test_a_disk_that_takes_more_has_space_and_the_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db.lock"
    path.write_text("123")
    descriptor = os.open(path, os.O_RDWR)
    assert not has_no_space(descriptor)
    os.close(descriptor)
    assert path.read_text() == "123"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_disk_that_takes_no_more_has_no_space(full_disk: int) -> None:
    assert has_no_space(full_disk)


def test_a_file_that_cannot_be_written_for_another_reason_does_not_say_that_there_is_no_space(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db.lock"
    path.write_text("123")
    descriptor = os.open(path, os.O_RDONLY)
    assert not has_no_space(descriptor)
    os.close(descriptor)
