"""A disk on which an fsync hangs: readiness and the heartbeat ask the writer."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.app import _beat_writer
from service.errors import OutboxUnavailableError
from service.outbox.sqlite.group_commit import GroupCommit
from service.outbox.sqlite.outbox import MAX_ROUND, SqliteOutbox
from service.telemetry.metrics import Metrics
from tests.support.clock import HandClock
from tests.support.events import entry
from tests.support.outboxes import opened
from tests.support.waiting import DEADLINE, until


def hang(outbox: SqliteOutbox) -> tuple[Callable[[], bool], Callable[[], None]]:
    """Have the writer hang in its next group commit; return a check that it does, and a function that ends it."""
    execute, hanging, end = outbox._writer._do, threading.Event(), threading.Event()

    def do(work: GroupCommit) -> None:
        hanging.set()
        end.wait(DEADLINE)
        execute(work)

    outbox._writer._do = do  # type: ignore[method-assign]
    return hanging.is_set, end.set


async def test_events_are_refused_while_a_group_commit_hangs_and_taken_once_it_ends(tmp_path: Path) -> None:
    clock = HandClock()
    async with opened(tmp_path / "outbox.db", clock) as outbox:
        # given
        is_hanging, end = hang(outbox)
        first = asyncio.create_task(outbox.put([entry(1)]))
        await until(is_hanging)

        # when it is merely slow, then nothing changes
        clock.move(MAX_ROUND)
        assert outbox.full() is None

        # when it hangs
        clock.move(0.1)
        with pytest.raises(OutboxUnavailableError, match="has not answered for 5 s"):
            await outbox.put([entry(2)])

        # then it recovers by itself, and what was put is stored
        end()
        assert await first == [True]
        assert outbox.full() is None
        assert await outbox.put([entry(2)]) == [True]


async def test_the_heartbeat_of_the_writer_stops_while_it_hangs(tmp_path: Path) -> None:
    metrics = Metrics()
    beats = metrics.heartbeats["writer"]
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        # given
        is_hanging, end = hang(outbox)
        beating = asyncio.create_task(_beat_writer(outbox, metrics))

        # when, then
        await until(is_hanging)
        assert beats._value.get() == 0
        end()
        await until(lambda: beats._value.get() > 0)
        beating.cancel()
