"""A disk that refuses settlements: little is sent meanwhile, little is held, and no core is burnt."""

from pathlib import Path

import pytest

from service.errors import OutboxUnavailableError
from service.outbox.capacity import REFUSED_PAUSE
from service.outbox.sqlite import outbox as module
from service.outbox.sqlite.group_commit import GroupCommit
from service.outbox.sqlite.outbox import MAX_SETTLE, SqliteOutbox
from tests.support.clock import HandClock
from tests.support.events import entries
from tests.support.outboxes import opened, refuse_writes
from tests.support.relays import Script, relaying
from tests.support.waiting import turns, until

EVENTS = MAX_SETTLE + 500


async def test_nothing_is_fetched_and_the_disk_is_tried_once_a_second_until_it_takes_a_settlement(
    tmp_path: Path,
) -> None:
    clock = HandClock()
    async with opened(tmp_path / "outbox.db", clock) as outbox:
        # given
        await outbox.put(entries(EVENTS + 10))
        events = await outbox.fetch(EVENTS)
        execute, rounds = outbox._writer._do, list[GroupCommit]()

        def count(work: GroupCommit) -> None:
            rounds.append(work)
            execute(work)

        outbox._writer._do = count  # type: ignore[method-assign]
        refuse_writes(outbox, refuse=True)

        # when more are settled than are written without waiting for more
        for stored in events:
            outbox.ack(stored)
        with pytest.raises(OutboxUnavailableError):
            await outbox.flush()
        for _ in range(3):
            tried = len(rounds)
            await until(lambda: clock.timers)
            await turns(200)
            assert len(rounds) == tried
            assert not outbox.settles()
            assert await outbox.fetch(10) == []
            clock.move(REFUSED_PAUSE)
            await until(lambda tried=tried: len(rounds) > tried)  # type: ignore[misc]

        # then all is settled once the disk takes writes
        refuse_writes(outbox, refuse=False)
        await until(lambda: clock.timers)
        clock.move(REFUSED_PAUSE)
        await until(outbox.settles)
        await outbox.flush()
        assert outbox.stats().events == 10
        assert len(await outbox.fetch(100)) == 10


async def test_settlements_on_their_way_are_bounded_by_number_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        await outbox.put(entries(10))
        events = await outbox.fetch(10)
        size = sum(len(stored.payload) for stored in events[:5])
        for name, bound in (("MAX_UNSETTLED", 5), ("MAX_UNSETTLED_BYTES", size)):
            monkeypatch.setattr(module, name, bound)
            for stored in events[:4]:
                outbox.nak(stored, 0.0)
            assert outbox.settles()
            outbox.nak(events[4], 0.0)
            assert not outbox.settles()
            await outbox.flush()
            assert outbox.settles()
            monkeypatch.undo()


async def test_nothing_more_is_posted_while_settlements_are_refused(tmp_path: Path) -> None:
    script, clock = Script(), HandClock()
    async with relaying(tmp_path / "outbox.db", script, clock=clock) as running:
        # given
        outbox = running.outbox
        assert isinstance(outbox, SqliteOutbox)
        await outbox.put(entries(1))
        await until(lambda: outbox.stats().events == 0)

        # when a settlement is refused
        await outbox.put(entries(200, first=1))
        refuse_writes(outbox, refuse=True)
        await until(lambda: not outbox.settles())
        await until(lambda: running.relay.in_flight == 0)
        posted = len(script.posts)
        await turns(200)
        assert len(script.posts) == posted

        # then the rest is delivered once the disk takes writes
        refuse_writes(outbox, refuse=False)
        await clock.tick_until(lambda: outbox.stats().events == 0)
        assert len(script.taken) == 201
        assert len(script.posts) == 201
