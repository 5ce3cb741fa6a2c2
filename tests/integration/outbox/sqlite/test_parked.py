"""Settlements and puts that fail by themselves: they take no other with them."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from service.errors import OutboxDamagedError
from service.outbox.base import Stored
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.group_commit import Counts
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import opened, sqlite_error


async def test_a_settlement_that_fails_by_itself_is_parked_and_tried_again_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ack = tmp_path / "outbox.db", Database.ack

    def meet_damage(file: Database, stored: list[Stored], change: Counts) -> None:
        ack(file, stored, change)
        if any(event.message_id == "m-2" for event in stored):
            raise sqlite_error(sqlite3.SQLITE_CORRUPT)

    async with opened(path, HandClock()) as outbox:
        # given
        await outbox.put(entries(5))
        events = await outbox.fetch(5)

        # when
        monkeypatch.setattr(Database, "ack", meet_damage)
        for stored in events:
            outbox.ack(stored)
        stored_new = await asyncio.gather(outbox.put([entry(10)]), outbox.put([entry(11)]))

        # then all others are settled, and puts in the same round are stored
        await outbox.flush()
        assert list(stored_new) == [[True], [True]]
        assert (outbox.stats().events, outbox.totals.parked) == (3, 1)
        assert [one.message_id for one in await outbox.fetch(10)] == ["m-10", "m-11"]
        assert outbox.full() is None

    monkeypatch.undo()
    async with opened(path, HandClock()) as outbox:
        assert [one.message_id for one in await outbox.fetch(10)] == ["m-2", "m-10", "m-11"]


async def test_a_put_that_meets_damage_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Database.put

    def meet_damage(file: Database, some: list[object], now: int, change: Counts) -> list[int]:
        ids = put(file, some, now, change)  # type: ignore[arg-type]
        if entry(1) in some:
            raise sqlite_error(sqlite3.SQLITE_CORRUPT)
        return ids

    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        monkeypatch.setattr(Database, "put", meet_damage)
        results = await asyncio.gather(*(outbox.put([entry(number)]) for number in range(4)), return_exceptions=True)
        assert [isinstance(result, OutboxDamagedError) for result in results] == [False, True, False, False]
        assert outbox.stats().events == 3
        assert [one.message_id for one in await outbox.fetch(10)] == ["m-0", "m-2", "m-3"]
