"""Every outbox: its verbs, its duplicate window, and what outlives a restart."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.errors import OutboxClosedError
from service.outbox.base import Entry, OpenOutbox, Pick
from tests.support.clock import HandClock
from tests.support.events import ACCEPTED_AT, entries, entry
from tests.support.outboxes import ALL, REFUSAL, RETRY_MAX_DELAY, Backend, bury, take
from tests.support.waiting import DEADLINE, until


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def outbox(backend: Backend, clock: HandClock) -> AsyncIterator[OpenOutbox]:
    async with backend.open(clock) as outbox:
        yield outbox


async def message_ids(outbox: OpenOutbox, count: int, pick: Pick = Pick.READY) -> list[str]:
    return [stored.message_id for stored in await take(outbox, count, pick)]


# -- put


async def test_nothing_put_is_a_put_too(outbox: OpenOutbox) -> None:
    assert await outbox.put([]) == []


async def test_a_message_id_twice_in_one_put_is_stored_once(outbox: OpenOutbox) -> None:
    stored = await outbox.put([entry(1), entry(2), entry(1), entry(3), entry(3)])
    assert stored == [True, True, False, True, False]
    assert await message_ids(outbox, 3) == ["m-1", "m-2", "m-3"]


async def test_duplicates_are_found_in_a_put_of_many_statements(outbox: OpenOutbox) -> None:
    await outbox.put(entries(100))
    stored = await outbox.put([*entries(200, first=50), *entries(200, first=50)])
    assert stored == [False] * 50 + [True] * 150 + [False] * 200


async def test_a_message_id_put_again_is_a_duplicate_even_once_it_was_delivered(outbox: OpenOutbox) -> None:
    await outbox.put([entry(1)])
    for stored in await take(outbox, 1):
        outbox.ack(stored)
    await outbox.flush()
    assert await outbox.put([entry(1), entry(2)]) == [False, True]


async def test_the_duplicate_window_outlives_a_restart(backend: Backend, clock: HandClock) -> None:
    async with backend.open(clock) as outbox:
        await outbox.put([entry(1)])
    async with backend.open(clock) as outbox:
        assert await outbox.put([entry(1)]) == [False]


async def test_message_ids_that_look_alike_are_kept_apart(outbox: OpenOutbox) -> None:
    alike = ["a", "a ", " a", "A", "a\n", "a\r", "a\x00", "a\x00b", "ä", "a\u0308", "x" * 100, "é" * 100, "%61"]
    assert await outbox.put([entry(1, message_id=one) for one in alike]) == [True] * len(alike)
    assert await message_ids(outbox, len(alike)) == alike


async def test_a_caller_that_gives_up_disturbs_nobody(outbox: OpenOutbox) -> None:
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


async def test_events_are_fetched_oldest_first_and_as_they_were_put(outbox: OpenOutbox, clock: HandClock) -> None:
    await outbox.put(entries(3))
    await outbox.put(entries(2, first=3))
    first = await take(outbox, 4)
    assert [Entry(one.message_id, one.payload, one.accepted_at) for one in first] == entries(4)
    assert {(one.attempts, one.first_attempt_at, one.queued_at) for one in first} == {(0, None, clock.now * 1000)}
    assert [one.id for one in first] == sorted({one.id for one in first})
    assert await message_ids(outbox, 1) == ["m-4"]


@pytest.mark.parametrize("is_read_back", [False, True], ids=["from memory", "from the store"])
async def test_an_event_is_fetched_with_the_traceparent_it_was_put_with(
    backend: Backend, clock: HandClock, is_read_back: bool
) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with backend.open(clock) as outbox:
        await outbox.fetch(1)  # from here on what is put stays in memory
        await outbox.put([entry(1)._replace(traceparent=traceparent), entry(2)])
        if not is_read_back:
            assert [stored.traceparent for stored in await take(outbox, 2)] == [traceparent, ""]
            return
    async with backend.open(clock) as outbox:
        assert [stored.traceparent for stored in await take(outbox, 2)] == [traceparent, ""]


async def test_a_fetched_event_is_not_fetched_again(outbox: OpenOutbox) -> None:
    await outbox.put(entries(3))
    await take(outbox, 3)
    assert await outbox.fetch(100) == []
    assert await outbox.fetch(100, Pick.TRIED) == []


async def test_an_acked_event_is_gone(outbox: OpenOutbox) -> None:
    await outbox.put(entries(2))
    [first, _] = await take(outbox, 2)
    outbox.ack(first)
    await outbox.flush()
    assert outbox.stats().events == 1


async def test_an_event_that_is_put_back_for_long_is_not_fetched(outbox: OpenOutbox) -> None:
    await outbox.put([entry(1)])
    [stored] = await take(outbox, 1)
    outbox.nak(stored, RETRY_MAX_DELAY)
    await outbox.flush()
    assert await outbox.fetch(100) == []
    assert outbox.stats().events == 1


async def test_an_event_that_is_put_back_comes_again_after_its_delay(
    outbox: OpenOutbox, backend: Backend, clock: HandClock
) -> None:
    # given
    await outbox.put([entry(1)])
    [stored] = await take(outbox, 1)
    outbox.nak(stored, 0.1)

    # when its time has come, by the clock of which it is told
    heard = asyncio.Event()
    outbox.subscribe(heard.set)
    again = await outbox.fetch(1)
    if backend.goes_by_the_clock:
        clock.move(0.1)
    elif not again:
        async with asyncio.timeout(DEADLINE):
            await heard.wait()
    again = again or await take(outbox, 1)

    # then
    assert [(one.message_id, one.attempts) for one in again] == [("m-1", 1)]
    assert (again[0].queued_at, again[0].accepted_at) == (stored.queued_at, stored.accepted_at)


async def test_events_that_are_put_back_for_at_once_come_before_new_ones_in_their_order(
    outbox: OpenOutbox, clock: HandClock
) -> None:
    await outbox.put(entries(3))
    [zero, one, two] = await take(outbox, 3)
    for stored in (one, two, zero):
        outbox.nak(stored, 0.0)
        clock.move(0.001)
    await outbox.put([entry(3)])
    assert await message_ids(outbox, 4) == ["m-1", "m-2", "m-0", "m-3"]


async def test_the_first_attempts_time_stays_over_further_attempts(outbox: OpenOutbox, clock: HandClock) -> None:
    await outbox.put([entry(1)])
    began = clock.now
    for attempts in range(3):
        [stored] = await take(outbox, 1)
        assert stored.attempts == attempts
        outbox.nak(stored, 0.0)
        await outbox.flush()
        clock.move(1.0)
    [stored] = await take(outbox, 1)
    assert stored.first_attempt_at == began * 1000


async def test_a_release_counts_no_attempt(outbox: OpenOutbox) -> None:
    await outbox.put([entry(1)])
    [stored] = await take(outbox, 1)
    outbox.release(stored)
    [again] = await take(outbox, 1)
    assert (again.attempts, again.first_attempt_at) == (0, None)


async def test_tried_events_are_fetched_though_they_are_not_due_each_time_another_one(outbox: OpenOutbox) -> None:
    await outbox.put(entries(2))
    for delay, stored in zip((20.0, 10.0), await take(outbox, 2), strict=True):
        outbox.nak(stored, delay)
    assert [await message_ids(outbox, 1, Pick.TRIED) for _ in range(2)] == [["m-1"], ["m-0"]]
    assert await outbox.fetch(1, Pick.TRIED) == []


async def test_nothing_is_due_where_nothing_was_put_back(outbox: OpenOutbox) -> None:
    await outbox.put([entry(1)])
    await outbox.fetch(2)
    assert outbox.next_due() is None


async def test_a_put_is_told_to_who_subscribed(outbox: OpenOutbox) -> None:
    heard: list[int] = []
    outbox.subscribe(lambda: heard.append(outbox.stats().events))
    await outbox.put([entry(1)])
    await until(lambda: heard == [1])


async def test_reopening_takes_up_what_was_leased(backend: Backend, clock: HandClock) -> None:
    async with backend.open(clock) as outbox:
        await outbox.put(entries(5))
        outbox.ack((await take(outbox, 5))[0])
    async with backend.open(clock) as outbox:
        assert await message_ids(outbox, 4) == ["m-1", "m-2", "m-3", "m-4"]


async def test_the_counters_are_right_right_after_reopening(backend: Backend, clock: HandClock) -> None:
    async with backend.open(clock) as outbox:
        await outbox.put(entries(5))
        [first, second, *_] = await take(outbox, 3)
        outbox.ack(first)
        outbox.term(second, REFUSAL)
        await outbox.flush()
        before = outbox.stats()
    async with backend.open(clock) as outbox:
        assert outbox.stats() == before
        assert (before.events, before.dead_letters, before.oldest_at) == (3, 1, ACCEPTED_AT)
        payloads = sum(len(one.payload) for one in entries(3, first=2))
        assert before.bytes == payloads if backend.counts_payloads else before.bytes > payloads


async def test_ids_are_never_given_twice_to_events_that_wait(backend: Backend, clock: HandClock) -> None:
    ids: list[int] = []
    for round_ in range(3):
        async with backend.open(clock) as outbox:
            await outbox.put(entries(3, first=3 * round_))
            await bury(outbox, [entry(100 + round_)])
            await outbox.dead_letters.replay(ALL)
            ids = [stored.id for stored in await take(outbox, 4 * (round_ + 1))]
    assert ids == sorted(set(ids))
    assert len(ids) == 12


# -- the end


async def test_closing_writes_what_was_settled(backend: Backend, clock: HandClock) -> None:
    async with backend.open(clock) as outbox:
        await outbox.put(entries(3))
        for stored in await take(outbox, 2):
            outbox.ack(stored)
    async with backend.open(clock) as outbox:
        assert await message_ids(outbox, 1) == ["m-2"]


async def test_a_closed_outbox_takes_nothing_and_closes_twice(backend: Backend, clock: HandClock) -> None:
    async with backend.open(clock) as outbox:
        await outbox.close()
        with pytest.raises(OutboxClosedError, match="closed"):
            await outbox.put([entry(1)])
