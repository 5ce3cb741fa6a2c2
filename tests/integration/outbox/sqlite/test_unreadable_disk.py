"""A disk that cannot be read, or asked for its space, for a while: nothing ends, and events are taken meanwhile."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from service.errors import OutboxUnavailableError
from service.outbox.capacity import DISK_CHECK_INTERVAL, Bounds
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.leases import Leases
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import opened, sqlite_error
from tests.support.relays import Script, relaying
from tests.support.waiting import until


def fail(*_: Any) -> Any:
    raise sqlite_error(sqlite3.SQLITE_IOERR_READ)


async def test_a_read_that_fails_is_told_as_an_error_of_the_outbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        monkeypatch.setattr(Database, "recall", fail)
        with pytest.raises(OutboxUnavailableError, match="words of SQLite"):
            await outbox.recall("name")


async def test_the_relay_goes_on_once_the_outbox_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, clock = Script(), HandClock()
    failures: list[int] = []

    def fail_and_count(*_: Any) -> Any:
        failures.append(1)
        fail()

    monkeypatch.setattr(Leases, "fetch", fail_and_count)
    async with relaying(tmp_path / "outbox.db", script, clock=clock) as running:
        # given a disk that cannot be read, events are accepted
        await until(lambda: failures)
        await until(lambda: not running.relay.is_able)
        assert await running.outbox.put(entries(3)) == [True] * 3

        # when it can be read again
        monkeypatch.undo()
        await clock.tick_until(lambda: len(script.taken) == 3)
        assert running.relay.is_able


async def test_a_folder_whose_free_space_cannot_be_asked_ends_nothing(tmp_path: Path) -> None:
    clock, free = HandClock(), [10**12]

    def disk_free(_: Path) -> int:
        if not free:
            raise OSError(5, "Input/output error")
        return free[0]

    async with opened(tmp_path / "outbox.db", clock, bounds=Bounds(disk_free=1), disk_free=disk_free) as outbox:
        assert outbox.full() is None
        free.clear()
        clock.move(DISK_CHECK_INTERVAL)
        assert outbox.full() is None
        assert await outbox.put([entry(1)]) == [True]
