"""The SQLite outbox: its promises beyond those of every outbox, and the work that they take."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.errors import OutboxUnavailableError
from service.outbox.base import Pick
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.outbox import SqliteOutbox
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import RETRY_MAX_DELAY, WINDOW, opened
from tests.support.waiting import turns, until


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def outbox(path: Path, clock: HandClock) -> AsyncIterator[SqliteOutbox]:
    async with opened(path, clock) as outbox:
        yield outbox


async def message_ids(outbox: SqliteOutbox, limit: int = 100, pick: Pick = Pick.READY) -> list[str]:
    return [stored.message_id for stored in await outbox.fetch(limit, pick)]


@dataclass
class Steps:
    """The work that SQLite had."""

    thousands: int = 0


def count_steps(outbox: SqliteOutbox) -> Steps:
    """Count the thousands of steps of SQLite's machine from now on."""
    steps = Steps()

    def count() -> int:
        steps.thousands += 1
        return 0

    outbox._file._connection.set_progress_handler(count, 1000)
    return steps


# -- put


async def test_put_returns_once_the_events_can_be_read_by_another_connection(outbox: SqliteOutbox, path: Path) -> None:
    await outbox.put(entries(3))
    with sqlite3.connect(path) as other:
        rows = other.execute("SELECT message_id, accepted_at, payload FROM event ORDER BY id").fetchall()
    other.close()
    assert rows == [(given.message_id, given.accepted_at, given.payload) for given in entries(3)]


async def test_a_message_id_is_forgotten_after_the_windows_time(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put([entry(1)])
    clock.move(WINDOW)
    assert await outbox.put([entry(1)]) == [False]
    clock.move(0.001)
    assert await outbox.put([entry(1)]) == [True]
    assert await outbox.put([entry(1)]) == [False]


async def test_a_system_clock_that_jumps_shortens_no_window(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put([entry(1)])
    clock.off = 10 * WINDOW
    assert await outbox.put([entry(1)]) == [False]


async def test_the_oldest_message_ids_are_forgotten_beyond_the_windows_count(path: Path, clock: HandClock) -> None:
    async with opened(path, clock, window_ids=10) as outbox:
        await outbox.put(entries(10))
        assert outbox.totals.evictions == 0
        await outbox.put(entries(3, first=10))

        assert outbox.totals.evictions == 3
        assert await outbox.put([entry(3), entry(12)]) == [False, False]
        assert await outbox.put([entry(0)]) == [True]


async def test_a_message_id_that_comes_again_after_its_time_takes_one_place_in_the_window(
    path: Path, clock: HandClock
) -> None:
    async with opened(path, clock, window_ids=3) as outbox:
        for _ in range(6):
            assert await outbox.put([entry(1)]) == [True]
            clock.move(WINDOW + 1)
        await outbox.put([entry(2)])
        await outbox.put([entry(3)])

        assert outbox.totals.evictions == 0
        assert await outbox.put([entry(2)]) == [False]


async def test_message_ids_forgotten_by_a_transaction_that_is_rolled_back_are_not_counted(path: Path) -> None:
    file = Database(path, window=WINDOW, window_ids=10)
    with closing(file):
        with file.transaction() as change:
            file.put(entries(10), 1000, change)

        def fail() -> None:
            with file.transaction() as change:
                file.put(entries(3, first=10), 1000, change)
                raise sqlite3.OperationalError("disk I/O error")

        with pytest.raises(OutboxUnavailableError):
            fail()
        assert file.evictions == 0

        with file.transaction() as change:
            file.put(entries(3, first=10), 1000, change)
        assert file.evictions == 3


async def test_many_callers_share_a_commit(outbox: SqliteOutbox) -> None:
    before = outbox.totals.commits
    await asyncio.gather(*(outbox.put([entry(number)]) for number in range(64)))
    assert outbox.totals.commits - before <= 4
    assert outbox.stats().events == 64


# -- fetch and settle


async def test_an_acked_event_is_gone(path: Path, outbox: SqliteOutbox) -> None:
    await outbox.put(entries(2))
    [first, _] = await outbox.fetch(2)
    outbox.ack(first)
    await outbox.flush()
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT message_id FROM event").fetchall() == [("m-1",)]
    other.close()
    assert outbox.stats().events == 1


async def test_a_nakd_event_is_due_again_after_its_delay(outbox: SqliteOutbox, clock: HandClock) -> None:
    # given
    await outbox.put([entry(1)])
    [stored] = await outbox.fetch(1)
    outbox.nak(stored, 10.0)
    assert outbox.next_due() == pytest.approx(10.0)
    clock.move(9.0)
    assert await message_ids(outbox) == []

    # when
    clock.move(1.0)

    # then
    [again] = await outbox.fetch(1)
    assert (again.message_id, again.attempts, again.first_attempt_at) == ("m-1", 1, (clock.now - 10) * 1000)
    assert (again.queued_at, again.accepted_at) == (stored.queued_at, stored.accepted_at)


async def test_no_event_waits_longer_than_the_longest_delay(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put([entry(1)])
    [stored] = await outbox.fetch(1)
    outbox.nak(stored, 10 * RETRY_MAX_DELAY)
    assert outbox.next_due() == RETRY_MAX_DELAY
    clock.move(RETRY_MAX_DELAY)
    assert await message_ids(outbox) == ["m-1"]


async def test_due_events_come_before_new_ones_by_their_due_time(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put(entries(3))
    [zero, one, two] = await outbox.fetch(3)
    outbox.nak(zero, 3.0)
    outbox.nak(one, 1.0)
    outbox.nak(two, 2.0)
    await outbox.put([entry(3)])
    clock.move(2.5)
    assert await message_ids(outbox) == ["m-1", "m-2", "m-3"]


async def test_a_due_time_further_away_than_any_delay_counts_as_due(path: Path) -> None:
    # given an event that was put back while the clock was a year ahead
    clock = HandClock()
    clock.move(365 * 86400.0)
    async with opened(path, clock) as outbox:
        await outbox.put([entry(1)])
        [stored] = await outbox.fetch(1)
        outbox.nak(stored, 60.0)

    # when the clock is right again
    async with opened(path, HandClock()) as outbox:
        # then
        due = outbox.next_due()
        assert due is None or due <= RETRY_MAX_DELAY
        assert await message_ids(outbox) == ["m-1"]


async def test_events_put_back_are_not_searched_for_new_ones_again_and_again(path: Path, clock: HandClock) -> None:
    # given a file opened with many events that were put back, and none that is new
    async with opened(path, clock) as outbox:
        await outbox.put(entries(5000))
        for stored in await outbox.fetch(5000):
            outbox.nak(stored, 100.0)
    async with opened(path, clock) as outbox:
        assert await outbox.fetch(10) == []
        await until(lambda: outbox._file.counter_check.is_done)
        steps = count_steps(outbox)

        # when a relay that probes asks for them early
        assert len(await outbox.fetch(1, Pick.TRIED)) == 1

        # then
        assert steps.thousands == 0
        await outbox.put([entry(5000)])
        assert await message_ids(outbox) == ["m-5000"]


async def test_an_event_put_back_while_others_are_read_is_due_in_its_time(
    outbox: SqliteOutbox, clock: HandClock
) -> None:
    # given a fetch that the writer is at work on
    await outbox.put(entries(2))
    [stored] = await outbox.fetch(1)
    fetching = asyncio.ensure_future(outbox.fetch(10))
    await turns(2)

    # when
    outbox.nak(stored, 1.0)
    await fetching

    # then
    assert outbox.next_due() == pytest.approx(1.0)
    await outbox.flush()
    clock.move(1.0)
    assert await message_ids(outbox) == ["m-0"]


# -- the end


# -- picks


async def test_the_newest_events_are_fetched_from_the_end_and_the_others_in_order(outbox: SqliteOutbox) -> None:
    await outbox.put(entries(6))
    assert await message_ids(outbox, 2, Pick.NEWEST) == ["m-5", "m-4"]
    assert await message_ids(outbox, 2, Pick.NEW) == ["m-0", "m-1"]
    assert await message_ids(outbox, 9, Pick.NEWEST) == ["m-3", "m-2"]
    assert await message_ids(outbox, 9, Pick.NEW) == []

    await outbox.put([entry(6)])
    assert await message_ids(outbox, 9, Pick.NEW) == ["m-6"]


async def test_an_event_that_waits_for_redelivery_is_in_nobodys_way(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put(entries(3))
    for stored in await outbox.fetch(2, Pick.NEW):
        outbox.nak(stored, 5.0)
    await outbox.flush()
    clock.move(6.0)

    assert await message_ids(outbox, 9, Pick.NEW) == ["m-2"]
    assert await message_ids(outbox, 1, Pick.DUE) == ["m-0"]
    assert await message_ids(outbox, 9, Pick.TRIED) == ["m-1"]


async def test_released_events_are_fetched_again_in_their_order_and_unchanged(outbox: SqliteOutbox) -> None:
    await outbox.put(entries(5))
    before = await outbox.fetch(4, Pick.NEW)
    commits = outbox.totals.commits

    for stored in (before[1], before[3]):
        outbox.release(stored)

    again = await outbox.fetch(9, Pick.NEW)
    assert [stored.message_id for stored in again] == ["m-1", "m-3", "m-4"]
    assert again[:2] == [before[1], before[3]]
    assert outbox.totals.commits == commits


async def test_a_remembered_text_outlives_a_restart(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        assert await outbox.recall("name") == ""
        await outbox.remember("name", "one")
        await outbox.remember("name", "two")
    async with opened(path, clock) as outbox:
        assert await outbox.recall("name") == "two"
