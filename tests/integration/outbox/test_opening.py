"""Opening the outbox's file: what is refused, with what words, and that nothing foreign is touched."""
# ruff: noqa: ASYNC240  the files are small, and nothing else goes on meanwhile

import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from service.errors import OutboxUnusableError
from service.outbox.sqlite.opening import unusable
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import open_outbox, opened, sqlite_error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


async def refusal(path: Path) -> str:
    """Return the error that opening a file raises; the file is not changed by it."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OutboxUnusableError) as refused:
        open_outbox(path, HandClock())
    assert (path.read_bytes() if path.is_file() else None) == before
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def fill(path: Path) -> None:
    """Make an outbox with some events in it."""
    async with opened(path, HandClock()) as outbox:
        await outbox.put(entries(200))


async def test_a_file_that_is_not_there_is_made_for_its_owner_alone(path: Path) -> None:
    async with opened(path, HandClock()) as outbox:
        await outbox.put([entry(1)])
        files = sorted(path.parent.iterdir())
        assert path in files
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_an_empty_file_becomes_an_outbox(path: Path) -> None:
    path.touch()
    async with opened(path, HandClock()) as outbox:
        assert await outbox.put([entry(1)]) == [True]


async def test_an_outbox_in_use_is_refused_and_its_process_named(path: Path) -> None:
    async with opened(path, HandClock()):
        words = await refusal(path)
        assert f"in use by another server (process {os.getpid()})" in words
        assert "POINTILLIST_OUTBOX_URL" in words


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
async def test_an_outbox_in_use_is_refused_under_another_name(path: Path, link: Callable[[Path, Path], None]) -> None:
    async with opened(path, HandClock()) as outbox:
        # given
        other = path.with_name("other.db")
        link(other, path)

        # when
        with pytest.raises(OutboxUnusableError, match=r"in use by another server|2 names \(hard links\)"):
            open_outbox(other, HandClock())

        # then the server that has it is not disturbed
        await outbox.put(entries(200))
    other.unlink()
    async with opened(path, HandClock()) as outbox:
        assert outbox.stats().events == 200


async def test_the_files_own_inode_is_locked_beside_the_lock_file_of_earlier_versions(path: Path) -> None:
    async with opened(path, HandClock()):
        for locked in (path, path.with_name("outbox.db.lock")):
            with locked.open("rb") as file, pytest.raises(BlockingIOError):
                flocked(file.fileno())


def flocked(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_file_with_a_second_name_is_refused_and_backups_named(path: Path) -> None:
    await fill(path)
    path.with_name("backup.db").hardlink_to(path)
    assert "Backups by hard links" in await refusal(path)


async def test_a_lock_file_that_is_a_symbolic_link_is_refused_and_what_it_names_is_left(path: Path) -> None:
    # given a link that somebody put there, as the folder is not ours alone
    other = path.with_name("somebody-elses")
    other.write_text("keep")
    path.with_name(f"{path.name}.lock").symlink_to(other)

    # when, then
    assert "outbox.db.lock is a symbolic link" in await refusal(path)
    assert other.read_text() == "keep"


async def test_a_symbolic_link_is_followed(path: Path) -> None:
    await fill(path)
    link = path.with_name("link.db")
    link.symlink_to(path.name)
    async with opened(link, HandClock()) as outbox:
        assert outbox.stats().events == 200
        assert not list(path.parent.glob("link.db-*"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "the disk is full, and the file is not damaged"),
        (sqlite3.SQLITE_BUSY, "another program has locked it"),
        (sqlite3.SQLITE_READONLY, "check the permissions"),
        (sqlite3.SQLITE_IOERR_READ, "check the disk"),
        (sqlite3.SQLITE_NOMEM, "leave the file where it is"),
    ],
)
def test_only_damage_is_called_damage(path: Path, code: int, words: str) -> None:
    message = str(unusable(path, sqlite_error(code)))
    assert words in message
    assert "Move it away" not in message
    assert "it is damaged" not in message


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_NOTADB])
def test_damage_is_called_damage(path: Path, code: int) -> None:
    message = str(unusable(path, sqlite_error(code)))
    assert "it is damaged" in message
    assert "Move it away" in message


async def test_a_file_that_another_program_locks_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)
    connect = partial(sqlite3.connect, timeout=0.0)
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **{**more, "timeout": 0.0}))
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE counter SET seen = seen")
        with pytest.raises(OutboxUnusableError, match="another program has locked it, and it is not damaged"):
            open_outbox(path, HandClock())


async def test_an_old_sqlite_is_said_to_be_too_old(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(path)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    words = await refusal(path)
    assert "needed is 3.37.0 or newer" in words
    assert "damaged" not in words


async def test_an_outbox_is_free_again_once_it_was_closed(path: Path) -> None:
    await fill(path)
    await fill(path)


async def test_another_programs_database_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE customer (name TEXT)")
    assert "another program's database; set POINTILLIST_OUTBOX_URL to another file" in await refusal(path)


async def test_another_programs_database_that_is_still_empty_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA application_id = 12345")
    assert "another program's database" in await refusal(path)


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("These are the notes of somebody.\n" * 100)
    words = await refusal(path)
    assert "not an outbox" in words
    assert "POINTILLIST_OUTBOX_URL" in words


async def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    assert "it must be a file" in await refusal(path)


async def test_a_missing_folder_is_refused(path: Path) -> None:
    assert "the folder must exist and be writable" in await refusal(path / "missing.db")


async def test_an_outbox_of_a_newer_version_is_refused(path: Path) -> None:
    await fill(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 999")
    words = await refusal(path)
    assert "schema 999" in words
    assert "newer" in words


async def test_a_file_damaged_from_its_second_page_on_is_refused(path: Path) -> None:
    await fill(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x5a" * (len(content) - 4096))
    assert "damaged" in await refusal(path)


async def test_a_file_that_was_cut_off_is_refused(path: Path) -> None:
    await fill(path)
    path.write_bytes(path.read_bytes()[: 4096 + 100])
    assert "damaged" in await refusal(path)


async def test_a_refused_file_is_not_held(path: Path) -> None:
    # given
    await fill(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x5a" * (len(content) - 4096))
    await refusal(path)

    # when
    path.write_bytes(content)

    # then
    async with opened(path, HandClock()) as outbox:
        assert outbox.stats().events == 200
