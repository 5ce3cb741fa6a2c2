"""The SQLite outbox: its bounds, and a disk that refuses."""

import asyncio
from pathlib import Path

import pytest

from service.errors import OutboxFullError, OutboxUnavailableError
from service.outbox.base import Entry, Pick
from service.outbox.capacity import DISK_CHECK_INTERVAL, REFUSED_PAUSE, Bounds
from service.outbox.sqlite.outbox import SqliteOutbox
from tests.support.clock import HandClock
from tests.support.events import ACCEPTED_AT, entries, entry, event
from tests.support.outboxes import REFUSAL, opened, refusal, refuse_writes
from tests.support.waiting import DEADLINE, until


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


async def message_ids(outbox: SqliteOutbox, limit: int = 100, *, pick: Pick = Pick.READY) -> list[str]:
    return [stored.message_id for stored in await outbox.fetch(limit, pick)]


async def test_an_outbox_full_of_events_refuses_until_a_tenth_is_free(path: Path, clock: HandClock) -> None:
    async with opened(path, clock, bounds=Bounds(events=20)) as outbox:
        # given
        await outbox.put(entries(20))
        with pytest.raises(OutboxFullError, match="POINTILLIST_OUTBOX_MAX_EVENTS allows 20") as refused:
            await outbox.put([entry(20)])
        assert refused.value.retry_after > 0
        events = await outbox.fetch(3)

        # when two are gone, then it is still full
        for stored in events[:2]:
            outbox.ack(stored)
        await outbox.flush()
        with pytest.raises(OutboxFullError):
            await outbox.put([entry(20)])

        # when a third is gone, then it takes events again, up to its bound
        outbox.ack(events[2])
        await outbox.flush()
        for number in (20, 21, 22):
            assert await outbox.put([entry(number)]) == [True]
        with pytest.raises(OutboxFullError):
            await outbox.put([entry(23)])


async def test_an_outbox_full_of_bytes_refuses(path: Path, clock: HandClock) -> None:
    size = sum(len(one.payload) for one in entries(10))
    async with opened(path, clock, bounds=Bounds(bytes=size)) as outbox:
        await outbox.put(entries(9))
        await outbox.put([entry(9)])
        with pytest.raises(OutboxFullError, match="POINTILLIST_OUTBOX_MAX_BYTES"):
            await outbox.put([entry(10)])


async def test_puts_under_way_count_as_held(path: Path, clock: HandClock) -> None:
    async with opened(path, clock, bounds=Bounds(events=10)) as outbox:
        results = await asyncio.gather(*(outbox.put([entry(n)]) for n in range(30)), return_exceptions=True)
        assert sum(result == [True] for result in results) == 10
        assert sum(isinstance(result, OutboxFullError) for result in results) == 20


async def test_puts_that_are_being_committed_are_not_counted_twice(path: Path, clock: HandClock) -> None:
    async with opened(path, clock, bounds=Bounds(events=20)) as outbox:
        for number in range(50):
            # when half of what there is room for is put
            putting = asyncio.create_task(outbox.put(entries(10, first=10 * number)))
            while not putting.done():
                # then at no moment is the outbox full
                assert outbox.full() is None
                await asyncio.sleep(0)
            for stored in await outbox.fetch(10):
                outbox.ack(stored)
            await outbox.flush()


async def test_a_disk_below_its_floor_refuses_until_there_is_clearly_more(path: Path, clock: HandClock) -> None:
    free = [1000]
    asked: list[Path] = []

    def disk_free(folder: Path) -> int:
        asked.append(folder)
        return free[0]

    async with opened(path, clock, bounds=Bounds(disk_free=1000), disk_free=disk_free) as outbox:
        assert await outbox.put([entry(0)]) == [True]

        free[0] = 999
        clock.move(DISK_CHECK_INTERVAL)
        with pytest.raises(OutboxFullError, match="POINTILLIST_DISK_FREE_FLOOR"):
            await outbox.put([entry(1)])

        free[0] = 1050
        clock.move(DISK_CHECK_INTERVAL)
        assert outbox.full() is not None

        free[0] = 1100
        clock.move(DISK_CHECK_INTERVAL)
        assert await outbox.put([entry(1)]) == [True]
        assert set(asked) == {path.parent}


async def test_who_waits_for_room_goes_on_when_there_is_some(path: Path, clock: HandClock) -> None:
    async with opened(path, clock, bounds=Bounds(events=10)) as outbox:
        await outbox.put(entries(10))
        waiting = asyncio.ensure_future(outbox.has_room())
        events = await outbox.fetch(5)
        assert not waiting.done()

        for stored in events:
            outbox.ack(stored)
        async with asyncio.timeout(DEADLINE):
            await waiting


async def test_a_refused_caller_is_told_to_wait_for_as_long_as_draining_takes(path: Path, clock: HandClock) -> None:
    async with opened(path, clock, bounds=Bounds(events=1000)) as outbox:
        # given an outbox that drains ten events a second
        await outbox.put(entries(1020))
        for _ in range(2):
            for stored in await outbox.fetch(10):
                outbox.ack(stored)
            await outbox.flush()
            clock.move(1.0)

        # then a tenth of a thousand takes about ten seconds
        with pytest.raises(OutboxFullError) as refused:
            await outbox.put([entry(2000)])
        assert refused.value.retry_after == pytest.approx(10.0, rel=0.1)


# -- a disk that refuses


def limit_pages(outbox: SqliteOutbox, pages: int) -> None:
    """Have SQLite itself refuse with SQLITE_FULL, as it does when the disk is full."""
    outbox._file._connection.execute(f"PRAGMA max_page_count = {pages}")


def page_count(outbox: SqliteOutbox) -> int:
    return int(outbox._file._connection.execute("PRAGMA page_count").fetchone()[0])


BIG = 100_000  # bytes of an event that takes many pages


def big(number: int) -> Entry:
    return Entry(f"big-{number}", event(number, properties={"a": "x" * BIG}).SerializeToString(), ACCEPTED_AT)


async def test_a_full_disk_is_told_to_callers_and_recovers_by_itself(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        # given
        await outbox.put(entries(5))
        limit_pages(outbox, page_count(outbox))

        # when
        with pytest.raises(OutboxFullError, match="full"):
            await outbox.put([big(1)])
        assert isinstance(outbox.full(), OutboxFullError)

        # then what was accepted is still there, and the refused one can come again
        assert outbox.stats().events == 5
        limit_pages(outbox, 1_000_000)
        assert "refuses writes" in refusal(outbox)
        clock.move(REFUSED_PAUSE)
        await until(lambda: outbox.full() is None)
        assert await outbox.put([entry(6)]) == [True]
        assert await message_ids(outbox) == [*(f"m-{number}" for number in range(5)), "m-6"]

    async with opened(path, clock) as outbox:
        assert await message_ids(outbox) == [*(f"m-{number}" for number in range(5)), "m-6"]


async def test_events_are_settled_while_the_disk_is_too_full_for_new_ones(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        await outbox.put(entries(5))
        events = await outbox.fetch(5)
        limit_pages(outbox, page_count(outbox))

        outbox.ack(events[0])
        with pytest.raises(OutboxFullError):
            await outbox.put([big(1)])
        assert outbox.stats().events == 4


async def test_settlements_that_could_not_be_written_are_written_later_and_once(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        # given an event that cannot be buried, because a dead letter needs a page more
        await outbox.put([entry(0), big(1), entry(2), entry(3)])
        events = await outbox.fetch(4)
        limit_pages(outbox, page_count(outbox))
        outbox.ack(events[0])
        outbox.nak(events[2], 1.0)
        outbox.term(events[1], REFUSAL)
        with pytest.raises(OutboxFullError):
            await outbox.flush()
        assert outbox.stats().events == 3  # what needs no page more is settled

        # when
        limit_pages(outbox, 1_000_000)
        clock.move(REFUSED_PAUSE)
        await until(lambda: outbox.stats().events == 2)

        # then each was settled once
        await outbox.flush()
        await outbox.put([entry(4)])
        await outbox.flush()
        assert (outbox.stats().events, outbox.stats().dead_letters) == (3, 1)
        clock.move(1.0)
        again = await outbox.fetch(10)
        assert [(one.message_id, one.attempts) for one in again] == [("m-2", 1), ("m-4", 0)]
    async with opened(path, clock) as outbox:
        assert (outbox.stats().events, outbox.stats().dead_letters) == (3, 1)


async def test_an_outbox_stays_full_until_the_disk_took_a_write_of_its_own(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        # given
        refuse_writes(outbox, refuse=True)
        with pytest.raises(OutboxUnavailableError, match="readonly") as refused:
            await outbox.put([entry(1)])
        assert refused.type is OutboxUnavailableError
        assert type(outbox.full()) is OutboxUnavailableError

        # when it tries the disk again and again, then it is full all the while
        for _ in range(3):
            clock.move(REFUSED_PAUSE)
            while not clock.timers:  # the next try is set when this one has failed
                assert "refuses writes" in refusal(outbox)
                await asyncio.sleep(0)
            assert "refuses writes" in refusal(outbox)

        # when the disk takes writes, then one try later it has room, though no caller came
        refuse_writes(outbox, refuse=False)
        assert outbox.full() is not None
        clock.move(REFUSED_PAUSE)
        await until(lambda: outbox.full() is None)
        assert await outbox.put([entry(1)]) == [True]


async def test_a_try_of_the_disk_really_writes(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        refuse_writes(outbox, refuse=True)
        with pytest.raises(OutboxUnavailableError):
            await outbox.put([entry(1)])
        refuse_writes(outbox, refuse=False)
        log = path.with_name(path.name + "-wal")
        before = log.stat().st_size

        clock.move(REFUSED_PAUSE)
        await until(lambda: outbox.full() is None)

        assert log.stat().st_size > before
        assert outbox.stats().events == 0
    async with opened(path, clock) as outbox:
        assert outbox.stats().events == 0


async def test_settlements_that_were_stuck_and_then_written_show_that_there_is_room(
    path: Path, clock: HandClock
) -> None:
    async with opened(path, clock) as outbox:
        # given
        await outbox.put([entry(1)])
        [stored] = await outbox.fetch(1)
        refuse_writes(outbox, refuse=True)
        outbox.ack(stored)
        with pytest.raises(OutboxUnavailableError):
            await outbox.flush()
        assert outbox.full() is not None

        # when
        refuse_writes(outbox, refuse=False)
        clock.move(REFUSED_PAUSE)

        # then the next try of the disk shows it
        await until(lambda: outbox.full() is None)
        assert outbox.stats().events == 0


async def test_settlements_that_need_less_room_do_not_show_that_there_is_any(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        # given
        await outbox.put(entries(2))
        events = await outbox.fetch(2)
        limit_pages(outbox, page_count(outbox))
        with pytest.raises(OutboxFullError):
            await outbox.put([big(1)])

        # when
        outbox.ack(events[0])
        await outbox.flush()

        # then
        assert outbox.stats().events == 1
        assert outbox.full() is not None
