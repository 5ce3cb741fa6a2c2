"""Opening the outbox's file: what is refused, with what words, and that nothing foreign is touched."""
# ruff: noqa: ASYNC240  the files are small, and nothing else goes on meanwhile

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import OutboxUnusableError
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import open_outbox, opened


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
