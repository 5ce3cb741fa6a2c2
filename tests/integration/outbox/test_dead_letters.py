"""Every outbox: its dead letters, listed, replayed and deleted."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pointillist_destination.v1 import event_pb2
from service.outbox.base import DeadLetterFilter, Entry, OpenOutbox, Pick, Refusal, Replayed
from tests.support.clock import HandClock
from tests.support.events import ACCEPTED_AT, entries, entry, identify
from tests.support.outboxes import ALL, REFUSAL, Backend, bury, take


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def outbox(backend: Backend, clock: HandClock) -> AsyncIterator[OpenOutbox]:
    async with backend.open(clock) as outbox:
        yield outbox


async def message_ids(outbox: OpenOutbox, count: int, pick: Pick = Pick.READY) -> list[str]:
    return [stored.message_id for stored in await take(outbox, count, pick)]


async def test_a_dead_letter_has_all_of_its_events_fields(outbox: OpenOutbox, clock: HandClock) -> None:
    # given an event that failed once
    await outbox.put([entry(1)])
    [stored] = await take(outbox, 1)
    first_at = clock.now * 1000
    outbox.nak(stored, 0.0)
    await outbox.flush()
    clock.move(5.0)

    # when
    [stored] = await take(outbox, 1)
    outbox.term(stored, Refusal("422", 422, "detail"))
    await outbox.flush()

    # then
    [letter] = await outbox.dead_letters.list(ALL, after=0, limit=10)
    assert (letter.message_id, letter.payload, letter.accepted_at) == entry(1)[:3]
    assert letter.refusal == Refusal("422", 422, "detail")
    assert (letter.attempts, letter.first_attempt_at, letter.last_attempt_at) == (2, first_at, clock.now * 1000)
    assert (outbox.stats().events, outbox.stats().dead_letters) == (0, 1)


async def test_dead_letters_that_are_about_to_be_written_are_counted_already(outbox: OpenOutbox) -> None:
    await outbox.put([entry(1)])
    [stored] = await take(outbox, 1)
    outbox.term(stored, REFUSAL)
    assert outbox.stats().dead_letters == 1
    await outbox.flush()
    assert outbox.stats().dead_letters == 1


FILTERS = [
    (DeadLetterFilter(), [0, 1, 2, 3]),
    (DeadLetterFilter(ids=(2, 4, 99)), [1, 3]),
    (DeadLetterFilter(ids=()), []),
    (DeadLetterFilter(reason="max_age"), [2]),
    (DeadLetterFilter(event_type="identify"), [3]),
    (DeadLetterFilter(event_type="Order Completed"), [0, 1, 2]),
    (DeadLetterFilter(user_id="u-1"), [1]),
    (DeadLetterFilter(user_id="a-3"), [3]),
    (DeadLetterFilter(since=1_800_000_001_000), [1, 2, 3]),
    (DeadLetterFilter(until=1_800_000_001_000), [0]),
    (DeadLetterFilter(since=1_800_000_001_000, until=1_800_000_003_000), [1, 2]),
    (DeadLetterFilter(reason="400", user_id="u-2"), []),
    (DeadLetterFilter(reason="400", event_type="Order Completed", since=1_800_000_001_000), [1]),
]


async def bury_four(outbox: OpenOutbox, clock: HandClock) -> None:
    """Three tracks and an identify, given up a second from each other, with ids from 1."""
    person = event_pb2.Event(identify=identify(3, user_id="", anonymous_id="a-3"))
    given = [*entries(3), Entry("m-3", person.SerializeToString(), ACCEPTED_AT)]
    for number, one in enumerate(given):
        await bury(outbox, [one], Refusal("max_age", None, "timeout") if number == 2 else REFUSAL)
        clock.move(1.0)


@pytest.mark.parametrize(("which", "expected"), FILTERS)
async def test_dead_letters_are_listed_by_any_filter(
    outbox: OpenOutbox, clock: HandClock, which: DeadLetterFilter, expected: list[int]
) -> None:
    await bury_four(outbox, clock)
    letters = await outbox.dead_letters.list(which, after=0, limit=10)
    assert [letter.message_id for letter in letters] == [f"m-{number}" for number in expected]


@pytest.mark.parametrize(("which", "expected"), FILTERS)
async def test_dead_letters_are_deleted_by_any_filter(
    outbox: OpenOutbox, clock: HandClock, which: DeadLetterFilter, expected: list[int]
) -> None:
    await bury_four(outbox, clock)
    assert await outbox.dead_letters.delete(which) == len(expected)
    left = [letter.message_id for letter in await outbox.dead_letters.list(ALL, after=0, limit=10)]
    assert left == [f"m-{number}" for number in range(4) if number not in expected]
    assert outbox.stats().dead_letters == 4 - len(expected)
    assert outbox.stats().events == 0


@pytest.mark.parametrize(("which", "expected"), FILTERS)
async def test_dead_letters_are_replayed_by_any_filter(
    outbox: OpenOutbox, clock: HandClock, which: DeadLetterFilter, expected: list[int]
) -> None:
    await bury_four(outbox, clock)
    assert await outbox.dead_letters.replay(which) == Replayed(len(expected), 0)
    assert (outbox.stats().events, outbox.stats().dead_letters) == (len(expected), 4 - len(expected))
    assert await message_ids(outbox, len(expected)) == [f"m-{number}" for number in expected]


async def test_an_event_keeps_its_traceparent_as_a_dead_letter_and_after_its_replay(outbox: OpenOutbox) -> None:
    # given
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await bury(outbox, [entry(1)._replace(traceparent=traceparent), entry(2)])

    # when
    letters = await outbox.dead_letters.list(ALL, after=0, limit=10)
    await outbox.dead_letters.replay(ALL)

    # then
    assert [letter.traceparent for letter in letters] == [traceparent, ""]
    assert [stored.traceparent for stored in await take(outbox, 2)] == [traceparent, ""]


async def test_dead_letters_are_listed_page_by_page(outbox: OpenOutbox) -> None:
    await bury(outbox, entries(5))
    first = await outbox.dead_letters.list(ALL, after=0, limit=3)
    second = await outbox.dead_letters.list(ALL, after=first[-1].id, limit=3)
    assert [letter.message_id for letter in [*first, *second]] == [f"m-{number}" for number in range(5)]


async def test_a_replayed_event_begins_anew_with_its_message_id_and_its_moment_of_acceptance(
    outbox: OpenOutbox, clock: HandClock
) -> None:
    await bury(outbox, [entry(1)])
    clock.move(1000.0)
    await outbox.dead_letters.replay(ALL)

    [stored] = await take(outbox, 1)
    assert Entry(stored.message_id, stored.payload, stored.accepted_at) == entry(1)
    assert (stored.attempts, stored.first_attempt_at, stored.queued_at) == (0, None, clock.now * 1000)


async def test_a_replayed_events_message_id_stays_a_duplicate(outbox: OpenOutbox) -> None:
    await bury(outbox, [entry(1)])
    await outbox.dead_letters.replay(ALL)
    assert await outbox.put([entry(1)]) == [False]


async def test_more_dead_letters_than_one_transaction_takes_are_all_replayed(outbox: OpenOutbox) -> None:
    await bury(outbox, entries(1200))
    assert await outbox.dead_letters.replay(ALL) == Replayed(1200, 0)
    assert await message_ids(outbox, 1200) == [f"m-{number}" for number in range(1200)]


async def test_events_put_while_dead_letters_are_replayed_hide_none_of_them(outbox: OpenOutbox) -> None:
    # given more dead letters than one transaction takes, and a relay that keeps up
    await bury(outbox, entries(1200))
    fetched = [stored.message_id for stored in await outbox.fetch(10)]

    # when
    replaying = asyncio.ensure_future(outbox.dead_letters.replay(ALL))
    number = 2000
    while not replaying.done():
        await outbox.put([entry(number)])
        fetched += [stored.message_id for stored in await outbox.fetch(10_000)]
        number += 1

    # then
    fetched += await message_ids(outbox, 1200 + number - 2000 - len(fetched))
    assert sorted(fetched) == sorted(f"m-{n}" for n in [*range(1200), *range(2000, number)])
