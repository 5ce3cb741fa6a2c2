"""The SQLite outbox: many dead letters, which hold nobody up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.outbox.base import DeadLetterFilter, Replayed
from service.outbox.sqlite.dead_letters import MAX_EXAMINED
from service.outbox.sqlite.group_commit import Counts
from service.outbox.sqlite.outbox import SqliteOutbox
from tests.support.clock import HandClock
from tests.support.events import entry
from tests.support.outboxes import opened
from tests.support.waiting import until


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


async def message_ids(outbox: SqliteOutbox, limit: int) -> list[str]:
    return [stored.message_id for stored in await outbox.fetch(limit)]


MANY = 20_000
NOBODY = DeadLetterFilter(user_id="nobody")
Act = Callable[[SqliteOutbox], Awaitable[object]]


async def inter(outbox: SqliteOutbox, count: int, reason: str) -> None:
    """Write dead letters into the file, faster than by giving events up."""

    def write(change: Counts) -> None:
        outbox._file._connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO dead_letter (message_id, accepted_at, event_type, user_id, anonymous_id, reason, detail,"
            " attempts, first_attempt_at, last_attempt_at, payload)"
            " SELECT ? || '-' || i, 1, 'e', 'u', '', ?, '', 1, 1, 1, zeroblob(100) FROM n",
            (count, reason, reason),
        )
        change.dead_letters += count

    await outbox._call(write)


@pytest.mark.parametrize(
    ("act", "nothing"),
    [
        (lambda outbox: outbox.dead_letters.list(NOBODY, after=0, limit=10), []),
        (lambda outbox: outbox.dead_letters.replay(NOBODY), Replayed(0, 0)),
        (lambda outbox: outbox.dead_letters.delete(NOBODY), 0),
    ],
    ids=["list", "replay", "delete"],
)
async def test_events_are_taken_while_many_dead_letters_are_searched(
    outbox: SqliteOutbox, act: Act, nothing: object
) -> None:
    # given
    await inter(outbox, MANY, "400")

    # when
    searching = asyncio.ensure_future(act(outbox))
    puts = 0
    while not searching.done():
        await outbox.put([entry(puts)])
        puts += 1

    # then none waited for more than a part of the search
    assert await searching == nothing
    assert puts >= MANY // MAX_EXAMINED


async def test_a_page_of_dead_letters_is_filled_from_far_apart(outbox: SqliteOutbox) -> None:
    for reason in ("max_age", "422", "max_age"):
        await inter(outbox, 1, reason)
        await inter(outbox, MANY // 2, "400")
    letters = await outbox.dead_letters.list(DeadLetterFilter(reason="max_age"), after=0, limit=10)
    assert [letter.id for letter in letters] == [1, MANY + 3]
    assert await outbox.dead_letters.list(DeadLetterFilter(reason="max_age"), after=0, limit=1) == letters[:1]


@pytest.mark.parametrize(("verb", "outcome"), [("replay", Replayed(MANY // 2, 0)), ("delete", MANY // 2)])
async def test_dead_letters_that_are_not_meant_are_looked_at_once(
    path: Path, clock: HandClock, verb: str, outcome: object
) -> None:
    async def steps(others: int) -> int:
        """Thousands of steps of SQLite's machine."""
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        async with opened(path.with_name(f"{others}.db"), clock) as outbox:
            await inter(outbox, others, "max_age")
            await inter(outbox, MANY // 2, "400")
            await until(lambda: outbox._file.counter_check.is_done)
            outbox._file._connection.set_progress_handler(step, 1000)
            assert await getattr(outbox.dead_letters, verb)(DeadLetterFilter(reason="400")) == outcome
        return count

    alone, behind_many = await steps(1), await steps(MANY)
    assert behind_many - alone < 20 * MANY / 1000


async def test_events_replayed_from_among_others_keep_their_order(outbox: SqliteOutbox) -> None:
    for _ in range(3):
        await inter(outbox, 3000, "max_age")
        await inter(outbox, 700, "400")
    assert await outbox.dead_letters.replay(DeadLetterFilter(reason="400")) == Replayed(2100, 0)
    assert outbox.stats().dead_letters == 9000
    assert await message_ids(outbox, 10_000) == [f"400-{number + 1}" for number in range(700)] * 3
