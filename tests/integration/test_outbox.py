"""The SQLite outbox: its verbs, its duplicate window, and what outlives a restart."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.errors import OutboxFullError
from service.outbox.base import Entry
from service.outbox.sqlite import SqliteOutbox
from service.outbox.sqlite_file import DiskRefusedError, SqliteFile
from tests.support.clock import HandClock
from tests.support.events import ACCEPTED_AT, entries, entry
from tests.support.outboxes import ALL, REFUSAL, RETRY_MAX_DELAY, WINDOW, bury, opened
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


async def message_ids(outbox: SqliteOutbox, limit: int = 100, *, early: bool = False) -> list[str]:
    return [stored.message_id for stored in await outbox.fetch(limit, early=early)]


@dataclass
class Steps:
    """How much SQLite had to do."""

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


async def test_nothing_put_is_a_put_too(outbox: SqliteOutbox) -> None:
    assert await outbox.put([]) == []


async def test_a_message_id_twice_in_one_put_is_stored_once(outbox: SqliteOutbox) -> None:
    stored = await outbox.put([entry(1), entry(2), entry(1), entry(3), entry(3)])
    assert stored == [True, True, False, True, False]
    assert await message_ids(outbox) == ["m-1", "m-2", "m-3"]


async def test_duplicates_are_found_in_a_put_of_many_statements(outbox: SqliteOutbox) -> None:
    await outbox.put(entries(100))
    stored = await outbox.put([*entries(200, first=50), *entries(200, first=50)])
    assert stored == [False] * 50 + [True] * 150 + [False] * 200


async def test_a_message_id_put_again_is_a_duplicate_even_once_it_was_delivered(outbox: SqliteOutbox) -> None:
    await outbox.put([entry(1)])
    for stored in await outbox.fetch(1):
        outbox.ack(stored)
    await outbox.flush()
    assert await outbox.put([entry(1), entry(2)]) == [False, True]


async def test_the_duplicate_window_outlives_a_restart(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        await outbox.put([entry(1)])
    async with opened(path, clock) as outbox:
        assert await outbox.put([entry(1)]) == [False]


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
        assert outbox.evictions == 0
        await outbox.put(entries(3, first=10))

        assert outbox.evictions == 3
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

        assert outbox.evictions == 0
        assert await outbox.put([entry(2)]) == [False]


async def test_message_ids_forgotten_by_a_transaction_that_is_rolled_back_are_not_counted(path: Path) -> None:
    file = SqliteFile(path, window=WINDOW, window_ids=10)
    with closing(file):
        with file.transaction() as change:
            file.put(entries(10), 1000, change)

        def fail() -> None:
            with file.transaction() as change:
                file.put(entries(3, first=10), 1000, change)
                raise sqlite3.OperationalError("disk I/O error")

        with pytest.raises(DiskRefusedError):
            fail()
        assert file.evictions == 0

        with file.transaction() as change:
            file.put(entries(3, first=10), 1000, change)
        assert file.evictions == 3


async def test_message_ids_that_look_alike_are_kept_apart(outbox: SqliteOutbox) -> None:
    alike = ["a", "a ", " a", "A", "a\n", "a\r", "a\x00", "a\x00b", "ä", "a\u0308", "x" * 100, "é" * 100, "%61"]
    assert await outbox.put([entry(1, message_id=one) for one in alike]) == [True] * len(alike)
    assert await message_ids(outbox) == alike


async def test_many_callers_share_a_commit(outbox: SqliteOutbox) -> None:
    before = outbox.commits
    await asyncio.gather(*(outbox.put([entry(number)]) for number in range(64)))
    assert outbox.commits - before <= 4
    assert outbox.stats().events == 64


async def test_a_caller_that_gives_up_disturbs_nobody(outbox: SqliteOutbox) -> None:
    # given
    puts = [asyncio.ensure_future(outbox.put([entry(number)])) for number in range(10)]
    await asyncio.sleep(0)

    # when
    puts[3].cancel()

    # then
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert isinstance(results.pop(3), asyncio.CancelledError)
    assert results == [[True]] * 9
    assert await outbox.put([entry(10)]) == [True]


# -- fetch and settle


async def test_events_are_fetched_oldest_first_and_as_they_were_put(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put(entries(3))
    await outbox.put(entries(2, first=3))
    first = await outbox.fetch(4)
    assert [Entry(one.message_id, one.payload, one.accepted_at) for one in first] == entries(4)
    assert {(one.attempts, one.first_attempt_at, one.queued_at) for one in first} == {(0, None, clock.now * 1000)}
    assert [one.id for one in first] == sorted({one.id for one in first})
    assert await message_ids(outbox) == ["m-4"]


@pytest.mark.parametrize("is_read_back", [False, True], ids=["from memory", "from the file"])
async def test_an_event_is_fetched_with_the_traceparent_it_was_put_with(
    path: Path, clock: HandClock, is_read_back: bool
) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with opened(path, clock) as outbox:
        await outbox.fetch(1)  # from here on what is put stays in memory
        await outbox.put([entry(1)._replace(traceparent=traceparent), entry(2)])
        if not is_read_back:
            assert [stored.traceparent for stored in await outbox.fetch(10)] == [traceparent, ""]
            return
    async with opened(path, clock) as outbox:
        assert [stored.traceparent for stored in await outbox.fetch(10)] == [traceparent, ""]


async def test_a_fetched_event_is_not_fetched_again(outbox: SqliteOutbox) -> None:
    await outbox.put(entries(3))
    await outbox.fetch(3)
    assert await message_ids(outbox) == []
    assert await message_ids(outbox, early=True) == []


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


async def test_the_first_attempts_time_stays_over_further_attempts(outbox: SqliteOutbox, clock: HandClock) -> None:
    await outbox.put([entry(1)])
    began = clock.now
    for attempts in range(3):
        [stored] = await outbox.fetch(1)
        assert stored.attempts == attempts
        outbox.nak(stored, 1.0)
        await outbox.flush()
        clock.move(1.0)
    [stored] = await outbox.fetch(1)
    assert stored.first_attempt_at == began * 1000


async def test_a_nak_without_an_attempt_counts_none(outbox: SqliteOutbox) -> None:
    await outbox.put([entry(1)])
    [stored] = await outbox.fetch(1)
    outbox.nak(stored, 0.0, attempted=False)
    [again] = await outbox.fetch(1)
    assert (again.attempts, again.first_attempt_at) == (0, None)


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


async def test_an_early_fetch_takes_what_is_not_due_each_time_another_one(outbox: SqliteOutbox) -> None:
    await outbox.put(entries(2))
    for delay, stored in zip((20.0, 10.0), await outbox.fetch(2), strict=True):
        outbox.nak(stored, delay)
    await outbox.put([entry(2)])
    assert [await message_ids(outbox, 1, early=True) for _ in range(4)] == [["m-2"], ["m-1"], ["m-0"], []]


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


async def test_nothing_is_due_where_nothing_was_put_back(outbox: SqliteOutbox) -> None:
    await outbox.put([entry(1)])
    await outbox.fetch(2)
    assert outbox.next_due() is None


async def test_events_put_back_are_not_searched_for_new_ones_again_and_again(path: Path, clock: HandClock) -> None:
    # given a file opened with many events that were put back, and none that is new
    async with opened(path, clock) as outbox:
        await outbox.put(entries(5000))
        for stored in await outbox.fetch(5000):
            outbox.nak(stored, 100.0)
    async with opened(path, clock) as outbox:
        assert await outbox.fetch(10) == []
        steps = count_steps(outbox)

        # when a relay that probes asks for them early
        assert len(await outbox.fetch(1, early=True)) == 1

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


async def test_a_put_is_told_to_who_subscribed(outbox: SqliteOutbox) -> None:
    heard: list[int] = []
    outbox.subscribe(lambda: heard.append(outbox.stats().events))
    await outbox.put([entry(1)])
    await until(lambda: heard == [1])


async def test_reopening_takes_up_what_was_leased(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        await outbox.put(entries(5))
        outbox.ack((await outbox.fetch(5))[0])
    async with opened(path, clock) as outbox:
        assert await message_ids(outbox) == ["m-1", "m-2", "m-3", "m-4"]


async def test_the_counters_are_right_right_after_reopening(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        await outbox.put(entries(5))
        [first, second, *_] = await outbox.fetch(3)
        outbox.ack(first)
        outbox.term(second, REFUSAL)
        await outbox.flush()
        before = outbox.stats()
    async with opened(path, clock) as outbox:
        assert outbox.stats() == before
        assert (before.events, before.dead_letters, before.oldest_at) == (3, 1, ACCEPTED_AT)
        assert before.bytes == sum(len(one.payload) for one in entries(3, first=2))


async def test_ids_are_never_given_twice_to_events_that_wait(path: Path, clock: HandClock) -> None:
    ids: list[int] = []
    for round_ in range(3):
        async with opened(path, clock, window_ids=1) as outbox:
            await outbox.put(entries(3, first=3 * round_))
            await bury(outbox, [entry(100 + round_)])
            await outbox.replay_dead_letters(ALL)
            ids = [stored.id for stored in await outbox.fetch(100)]
    assert ids == sorted(set(ids))
    assert len(ids) == 12


# -- the end


async def test_closing_writes_what_was_settled(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        await outbox.put(entries(3))
        for stored in await outbox.fetch(2):
            outbox.ack(stored)
    async with opened(path, clock) as outbox:
        assert await message_ids(outbox) == ["m-2"]


async def test_a_closed_outbox_takes_nothing_and_closes_twice(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as outbox:
        await outbox.close()
        with pytest.raises(OutboxFullError, match="closed"):
            await outbox.put([entry(1)])
