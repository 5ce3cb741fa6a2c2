"""The counters of an outbox file are those of its rows."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.outbox.base import Pick
from service.outbox.sqlite import counter_check
from service.outbox.sqlite.database import Database
from service.outbox.sqlite.group_commit import Counts
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import ALL, REFUSAL, WINDOW, opened
from tests.support.waiting import until

NOW = 1_800_000_000_000  # milliseconds


def edit(path: Path, statement: str) -> None:
    """Change a file that is closed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def rows(database: Database) -> Counts:
    """Count the rows."""
    (events, size), (seen,), (dead_letters,) = (
        database._connection.execute(statement).fetchone()
        for statement in (
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM event",
            "SELECT count(*) FROM seen",
            "SELECT count(*) FROM dead_letter",
        )
    )
    return Counts(events, size, seen, dead_letters)


async def test_wrong_counters_are_repaired_after_opening(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # given
    path, clock = tmp_path / "outbox.db", HandClock()
    async with opened(path, clock) as outbox:
        await outbox.put(entries(2000))
        [stored] = await outbox.fetch(1)
        outbox.term(stored, REFUSAL)
        await outbox.flush()
        right = outbox._file.counts
    edit(path, "UPDATE counter SET events = 5000000, bytes = 7, seen = 0, dead_letters = 12")

    # when
    async with opened(path, clock) as outbox:
        await until(lambda: outbox.stats().dead_letters == 1)

        # then
        assert outbox._file.counts == right
        assert (outbox.stats().events, outbox.stats().bytes) == (right.events, right.bytes)
        assert "counters of the outbox were wrong; repaired them" in capsys.readouterr().out
    async with opened(path, clock) as outbox:
        assert outbox._file.counts == right


async def test_settling_an_event_that_is_gone_lowers_no_counter(tmp_path: Path) -> None:
    path, clock = tmp_path / "outbox.db", HandClock()
    async with opened(path, clock) as outbox:
        # given
        await outbox.put(entries(3))
        events = await outbox.fetch(3)
        await outbox._call(lambda _: outbox._file._connection.execute("DELETE FROM event WHERE message_id = 'm-1'"))

        # when
        for stored in events[:2]:
            outbox.ack(stored)
        await outbox.flush()

        # then
        size = len(entry(1).payload) + len(entry(2).payload)
        assert (outbox.stats().events, outbox.stats().bytes) == (2, size)


async def test_a_time_of_the_window_in_the_future_counts_as_now(tmp_path: Path) -> None:
    # given a window that was written while the clock was a year ahead
    path, clock = tmp_path / "outbox.db", HandClock()
    clock.correction = 365 * 86_400.0
    async with opened(path, clock) as outbox:
        await outbox.put(entries(1000))

        # when it comes right, while the outbox is open
        clock.correction = 0.0
        await outbox.put([entry(1000)])
        await outbox.flush()
        await until(lambda: outbox._file.counter_check.is_done)

        # then the ids are remembered for the window, and no longer
        clock.move(WINDOW - 10.0)
        assert await outbox.put([entry(7)]) == [False]
        clock.move(20.0)
        assert await outbox.put([entry(7)]) == [True]
        [first, *_] = await outbox.fetch(1)
        assert first.accepted_at == entry(0).accepted_at


def test_a_check_whose_start_failed_halfway_starts_again(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "outbox.db", window=WINDOW, window_ids=40)) as database:
        database._connection.execute("CREATE TEMP TABLE counted (left_over)")
        while not database.counter_check.is_done:
            assert not database.counter_check.step(NOW)


def take(database: Database, name: str, number: int, put: int) -> int:
    """Make a change by its name; return the number of events put."""
    with database.transaction() as change:
        match name:
            case "put":
                database.put(entries(number, first=put), NOW, change)
                return number
            case "ack":
                database.ack(database.leases.fetch(number, Pick.NEW, NOW, NOW), change)
            case "term":
                for stored in database.leases.fetch(number, Pick.NEW, NOW, NOW):
                    database.term(stored, REFUSAL, NOW, change)
            case "replay":
                database.dead_letters.replay(ALL, 0, number, NOW, change)
            case _:
                database.dead_letters.delete(ALL, 0, number, change)
    return 0


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "ack", "term", "replay", "delete", "check", "restart"]), st.integers(1, 12)),
        max_size=60,
    )
)
def test_checks_among_changes_find_nothing_wrong(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    database = Database(tmp_path_factory.mktemp("check") / "outbox.db", window=WINDOW, window_ids=40)
    put = 0
    with pytest.MonkeyPatch.context() as patch, closing(database):
        patch.setattr(counter_check, "SLICE", 3)
        check = database.counter_check
        for name, number in steps:
            if name == "check":
                assert not any(check.step(NOW) for _ in range(number) if not check.is_done)
            elif name == "restart":
                check.restart()
            else:
                put += take(database, name, number, put)
        while not check.is_done:
            assert not check.step(NOW)
        assert database.counts == rows(database)
