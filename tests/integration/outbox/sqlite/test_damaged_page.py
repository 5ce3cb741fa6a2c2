"""One page of the outbox file is overwritten: the events on it cannot be read, and everything else goes on."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from service.outbox.base import Pick
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import opened
from tests.support.relays import Script, relaying
from tests.support.waiting import until

PAGE = 4096  # bytes
LEAF_OF_TABLE = 0x0D  # the first byte of such a page of SQLite
INTERIOR = {0x02, 0x05}
MOST_ON_A_PAGE = 60  # events


async def fill(path: Path, count: int) -> None:
    """Put events and close the file, which leaves nothing in its write-ahead log."""
    async with opened(path, HandClock()) as outbox:
        for first in range(0, count, 500):
            await outbox.put(entries(min(500, count - first), first=first))


async def put_back(path: Path, clock: HandClock) -> None:
    """Try the first thousand events, have them await redelivery, and close the file."""
    async with opened(path, clock) as outbox:
        for stored in await outbox.fetch(1000):
            outbox.nak(stored, 0.0)


def overwrite(path: Path, number: int) -> None:
    """Overwrite a page of SQLite; the first is number 1."""
    with path.open("r+b") as file:
        file.seek((number - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


def page_of_event(path: Path, message_id: str) -> int:
    """Return the number of the page that holds an event."""
    content = path.read_bytes()
    pages = (content[start : start + PAGE] for start in range(0, len(content), PAGE))
    return next(
        number for number, page in enumerate(pages, 1) if page[0] == LEAF_OF_TABLE and message_id.encode() in page
    )


def last_page(path: Path, name: str) -> int:
    """Return the number of the last leaf of an index."""
    with closing(sqlite3.connect(path)) as connection:
        [number] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    content = path.read_bytes()
    while content[start := (number - 1) * PAGE] in INTERIOR:
        number = int.from_bytes(content[start + 8 : start + 12], "big")
    return int(number)


def missing(message_ids: Iterable[str], count: int) -> list[int]:
    """Return the numbers of the events that are not among some."""
    return sorted(set(range(count)) - {int(message_id[2:]) for message_id in message_ids})


def is_one_page(numbers: list[int], including: int) -> bool:
    """Return True if events are those of the page that held one of them."""
    return (
        numbers == list(range(numbers[0], numbers[-1] + 1)) and including in numbers and len(numbers) < MOST_ON_A_PAGE
    )


@pytest.mark.parametrize("damaged", [0, 6000])
async def test_with_a_page_of_events_damaged_all_others_are_delivered_and_puts_go_on(
    tmp_path: Path, damaged: int
) -> None:
    # given
    path, count = tmp_path / "outbox.db", 12_000
    await fill(path, count)
    overwrite(path, page_of_event(path, f"m-{damaged}"))
    script = Script()

    # when it is delivered, and is opened once more
    async with relaying(path, script) as running:
        assert await running.outbox.put([entry(count)]) == [True]
        await until(lambda: len(set(script.taken)) + running.outbox.totals.unreadable == count + 1)
        await until(lambda: not running.relay.in_flight)
        lost = missing(script.taken, count + 1)
        assert is_one_page(lost, damaged)
        assert running.relay.is_able
        await running.outbox.flush()
        parked = running.outbox.totals.parked
    script.taken.clear()
    async with relaying(path, script) as running:
        assert await running.outbox.put([entry(count + 1)]) == [True]
        await until(lambda: f"m-{count + 1}" in script.taken and not running.relay.in_flight)

        # then nothing is sent again but events whose settlement met the page
        assert len(script.taken) == 1 + parked
        assert parked < 2 * MOST_ON_A_PAGE
        assert running.outbox.stats().oldest_at is None or parked


async def test_with_the_newest_page_damaged_the_others_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await fill(path, 1000)
    overwrite(path, page_of_event(path, "m-999"))
    async with opened(path, HandClock()) as outbox:
        events = await outbox.fetch(2000)
        assert is_one_page(missing([stored.message_id for stored in events], 1000), 999)


async def test_events_that_await_redelivery_on_a_damaged_page_are_passed_over(tmp_path: Path) -> None:
    # given
    path, clock = tmp_path / "outbox.db", HandClock()
    await fill(path, 1000)
    await put_back(path, clock)
    overwrite(path, page_of_event(path, "m-500"))

    # when
    async with opened(path, clock) as outbox:
        events = await outbox.fetch(1000, Pick.DUE)

        # then
        assert is_one_page(missing([stored.message_id for stored in events], 1000), 500)
        assert outbox.next_due() is None


@pytest.mark.parametrize("pick", [Pick.NEW, Pick.DUE])
async def test_a_damaged_index_of_due_times_is_rebuilt(tmp_path: Path, pick: Pick) -> None:
    # given
    path, clock = tmp_path / "outbox.db", HandClock()
    await fill(path, 2000)
    await put_back(path, clock)
    overwrite(path, last_page(path, "event_due"))

    # when
    async with opened(path, clock) as outbox:
        events = await outbox.fetch(1000, pick)

        # then
        assert len(events) == 1000
        assert outbox.totals.unreadable == 0


async def test_a_window_whose_oldest_page_is_damaged_takes_puts(tmp_path: Path) -> None:
    # given
    path = tmp_path / "outbox.db"
    await fill(path, 1000)
    with closing(sqlite3.connect(path)) as connection:
        [number] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'seen'").fetchone()
    content = path.read_bytes()
    root = content[(number - 1) * PAGE : number * PAGE]
    first_cell = int.from_bytes(root[12:14], "big")
    overwrite(path, int.from_bytes(root[first_cell : first_cell + 4], "big"))

    # when a put has to evict an id
    async with opened(path, HandClock(), window_ids=1000) as outbox:
        assert await outbox.put([entry(1000)]) == [True]

        # then
        assert await outbox.put([entry(1001)]) == [True]
        assert await outbox.put([entry(999)]) == [False]
