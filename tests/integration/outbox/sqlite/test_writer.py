"""The SQLite outbox: its writer, when something goes wrong on its thread."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from service.errors import OutboxClosedError, OutboxUnavailableError
from service.outbox.sqlite.group_commit import Counts
from service.outbox.sqlite.outbox import SqliteOutbox
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import ALL, opened, refusal
from tests.support.waiting import DEADLINE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def deny_statistics(outbox: SqliteOutbox, denied: list[object]) -> None:
    """Have SQLite itself fail to say how much of the file is free."""

    def authorise(action: int, *names: object) -> int:
        if action == sqlite3.SQLITE_PRAGMA and names[0] == "freelist_count":
            denied.append(names)
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    outbox._file._connection.set_authorizer(authorise)


async def test_statistics_that_cannot_be_read_stop_nothing(path: Path) -> None:
    async with opened(path, HandClock()) as outbox:
        denied: list[object] = []
        deny_statistics(outbox, denied)
        async with asyncio.timeout(DEADLINE):
            for number in range(3):
                assert await outbox.put([entry(number)]) == [True]
            assert len(await outbox.fetch(10)) == 3
        assert denied
        assert outbox.full() is None


async def test_statistics_go_on_once_they_can_be_read_again(path: Path) -> None:
    async with opened(path, HandClock()) as outbox:
        deny_statistics(outbox, [])
        await outbox.put([entry(1)])
        assert outbox.stats().oldest_at is None

        outbox._file._connection.set_authorizer(None)
        await outbox.flush()
        assert outbox.stats().oldest_at == entry(1).accepted_at


def die(_: Counts) -> None:
    """End the thread that calls it."""
    raise SystemExit


async def test_a_writer_that_ends_fails_everybody_who_waits_for_it(path: Path) -> None:
    async with opened(path, HandClock()) as outbox, asyncio.timeout(DEADLINE):
        waiting = [
            asyncio.ensure_future(one)
            for one in (outbox._call(die), outbox.put([entry(1)]), outbox.fetch(1), outbox.flush())
        ]
        await asyncio.sleep(0)
        waiting.append(asyncio.ensure_future(outbox.put([entry(2)])))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [OutboxUnavailableError] * 5
        assert {str(result).split(";")[0] for result in results} == {"the outbox's writer has ended"}


async def test_an_outbox_whose_writer_ended_takes_nothing_and_says_so(path: Path) -> None:
    async with opened(path, HandClock()) as outbox, asyncio.timeout(DEADLINE):
        # given
        await outbox.put(entries(2))
        [stored] = await outbox.fetch(1)
        with pytest.raises(OutboxUnavailableError):
            await outbox._call(die)

        # then
        assert "writer has ended" in refusal(outbox)
        assert "writer has ended" in (outbox.broken() or "")
        with pytest.raises(OutboxUnavailableError, match="writer has ended"):
            await outbox.put([entry(2)])
        with pytest.raises(OutboxUnavailableError, match="writer has ended"):
            await outbox.dead_letters.list(ALL, after=0, limit=1)

        # then nothing is handed out either, because it could not be settled
        outbox.nak(stored, 0.0)
        assert await outbox.fetch(10) == []
        assert outbox.next_due() is None


async def test_an_outbox_whose_writer_ended_can_be_closed_and_opened_again(path: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        async with opened(path, HandClock()) as outbox:
            await outbox.put([entry(1)])
            with pytest.raises(OutboxUnavailableError):
                await outbox._call(die)
        async with opened(path, HandClock()) as outbox:
            assert [stored.message_id for stored in await outbox.fetch(10)] == ["m-1"]


async def test_who_comes_while_an_outbox_is_closed_does_not_wait_for_ever(path: Path) -> None:
    async with opened(path, HandClock()) as outbox, asyncio.timeout(DEADLINE):
        closing = asyncio.ensure_future(outbox.close())
        late: list[asyncio.Future[list[bool]]] = []
        while not closing.done():
            late.append(asyncio.ensure_future(outbox.put([entry(len(late))])))
            await asyncio.sleep(0)
        results = await asyncio.gather(*late, return_exceptions=True)
        assert isinstance(results[-1], OutboxClosedError)
        assert all(result == [True] or isinstance(result, OutboxClosedError) for result in results)
