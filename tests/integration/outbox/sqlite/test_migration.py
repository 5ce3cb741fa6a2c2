"""An outbox file of an earlier schema: brought up to this one with nothing lost, or left as it was."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

import pytest

from service.errors import OutboxUnusableError
from service.outbox.base import DeadLetter, DeadLetterFilter, Pick, Refusal, Replayed, Stored
from service.outbox.sqlite.opening import SCHEMA_VERSION
from tests.support.clock import START, HandClock
from tests.support.events import ACCEPTED_AT, entry
from tests.support.outboxes import opened
from tests.support.paths import DATA

SCHEMA_1, SCHEMA_2, SCHEMA_3, SCHEMA_4 = (
    (DATA / f"outbox_schema_{number}.sql").read_text(encoding="utf-8") for number in (1, 2, 3, 4)
)
WAITING = 40
TRIED = 7  # the id of the one that was tried three times and waits for its time
REPLAYED = 9  # the id of the one that was a dead letter and was replayed an hour after it was accepted
DEAD = 3
HOUR = 3_600_000  # milliseconds


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file as it is, and commit."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file of the first schema, with events that wait and dead letters."""
    path = tmp_path / "outbox.db"
    with database(path) as connection:
        connection.executescript(SCHEMA_1)
        size = 0
        for id_ in range(1, WAITING + 1):
            message_id, payload, accepted_at = entry(id_)[:3]
            size += len(payload)
            tried = (3, accepted_at + 1_000, accepted_at + 60_000) if id_ == TRIED else (0, None, None)
            connection.execute(
                "INSERT INTO event (id, message_id, accepted_at, replayed_at, attempts, first_attempt_at, due_at,"
                " payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (id_, message_id, accepted_at, accepted_at + HOUR if id_ == REPLAYED else None, *tried, payload),
            )
            digest = blake2b(message_id.encode(), digest_size=16).digest()
            connection.execute("INSERT INTO seen VALUES (?, ?, ?)", (id_, digest, accepted_at))
        for number in range(1, DEAD + 1):
            message_id, payload, accepted_at = _of(1_000 + number)
            connection.execute(
                "INSERT INTO dead_letter (message_id, accepted_at, event_type, user_id, anonymous_id, reason, status,"
                " detail, attempts, first_attempt_at, last_attempt_at, payload)"
                " VALUES (?, ?, 'Order Completed', ?, '', '400', 400, 'no', 1, ?, ?, ?)",
                (message_id, accepted_at, f"u-{1_000 + number}", accepted_at + 5, accepted_at + 5, payload),
            )
        connection.execute("UPDATE counter SET events = ?, bytes = ?, seen = ?", (WAITING, size, WAITING))
        connection.execute("UPDATE counter SET dead_letters = ?", (DEAD,))
    return path


def dump(path: Path) -> tuple[int, list[str]]:
    """The schema version and everything in the file, as SQL."""
    with database(path) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version, list(connection.iterdump())


async def test_every_waiting_event_of_an_old_file_is_served_as_it_was(old_file: Path) -> None:
    async with opened(old_file, HandClock(START + 7_200)) as outbox:
        waiting = await outbox.fetch(1_000)

        expected = [entry(id_) for id_ in range(1, WAITING + 1)]
        by_id = sorted(waiting)
        assert [(event.message_id, event.payload, event.accepted_at) for event in by_id] == [
            given[:3] for given in expected
        ]
        assert [event.id for event in by_id] == list(range(1, WAITING + 1))
        assert outbox.stats().events == WAITING
        assert outbox.stats().bytes == sum(len(event.payload) for event in expected)


async def test_an_event_of_an_old_file_keeps_its_attempts_and_its_time(old_file: Path) -> None:
    async with opened(old_file, HandClock(START)) as outbox:
        waiting = {event.id for event in await outbox.fetch(1_000)}
        due = outbox.next_due()
        [tried] = await outbox.fetch(1, Pick.TRIED)

        assert TRIED not in waiting
        assert due == 60.0
        assert (tried.id, tried.attempts, tried.first_attempt_at) == (TRIED, 3, ACCEPTED_AT + 1_000)


async def test_an_event_of_an_old_file_is_as_old_as_its_acceptance_or_its_replay(old_file: Path) -> None:
    async with opened(old_file, HandClock(START + 7_200)) as outbox:
        queued_at = {event.id: event.queued_at for event in await outbox.fetch(1_000)}

        assert queued_at.pop(REPLAYED) == ACCEPTED_AT + HOUR
        assert set(queued_at.values()) == {ACCEPTED_AT}


async def test_the_dead_letters_of_an_old_file_can_be_read_and_replayed(old_file: Path) -> None:
    async with opened(old_file, HandClock(START + 7_200)) as outbox:
        letters = await outbox.dead_letters.list(DeadLetterFilter(), after=0, limit=100)
        replayed = await outbox.dead_letters.replay(DeadLetterFilter())
        waiting = {event.message_id for event in await outbox.fetch(1_000)}

        refusal = Refusal("400", 400, "no")
        at = ACCEPTED_AT + 5
        assert letters == [DeadLetter(n, *_of(1_000 + n), refusal, 1, at, at) for n in range(1, DEAD + 1)]
        assert replayed == Replayed(DEAD, 0)
        assert {letter.message_id for letter in letters} < waiting


def _of(number: int) -> tuple[str, bytes, int]:
    message_id, payload, accepted_at = entry(number)[:3]
    return message_id, payload, accepted_at


async def test_an_old_file_still_knows_duplicates_and_gives_new_events_new_ids(old_file: Path) -> None:
    async with opened(old_file, HandClock(START)) as outbox:
        stored = await outbox.put([entry(1), entry(5_000)])
        ids = [event.id for event in await outbox.fetch(1_000) if event.message_id == "m-5000"]

        assert stored == [False, True]
        assert ids > [WAITING]


async def test_a_file_brought_up_is_opened_again_without_another_change(old_file: Path) -> None:
    async with opened(old_file, HandClock(START)):
        pass
    once = dump(old_file)

    async with opened(old_file, HandClock(START)):
        pass

    assert once[0] == SCHEMA_VERSION
    assert dump(old_file) == once


@pytest.mark.parametrize("schema", [SCHEMA_1, SCHEMA_2, SCHEMA_3, SCHEMA_4], ids=["1", "2", "3", "4"])
async def test_a_file_brought_up_has_the_tables_and_indexes_of_a_new_one(schema: str, tmp_path: Path) -> None:
    def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
        with database(path) as connection:
            names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
            return {name: connection.execute(f"PRAGMA table_xinfo('{name}')").fetchall() for name in names}

    old_file = tmp_path / "old.db"
    with database(old_file) as connection:
        connection.executescript(schema)
    async with opened(old_file, HandClock(START)), opened(tmp_path / "new.db", HandClock(START)):
        pass

    assert columns(old_file) == columns(tmp_path / "new.db")


async def test_a_file_of_the_second_schema_keeps_what_waits_and_its_dead_letters(tmp_path: Path) -> None:
    # given
    path = tmp_path / "outbox.db"
    message_id, payload, accepted_at = _of(1)
    with database(path) as connection:
        connection.executescript(SCHEMA_2)
        connection.execute(
            "INSERT INTO event VALUES (7, ?, ?, ?, 2, ?, ?, ?)",
            (message_id, accepted_at, accepted_at + 1, accepted_at + 2, accepted_at + 3, payload),
        )
        connection.execute(
            "INSERT INTO dead_letter VALUES (3, ?, ?, 'Order Completed', 'u-1', '', '400', 400, 'no', 1, 5, 6, ?)",
            (message_id, accepted_at, payload),
        )
        connection.execute("UPDATE counter SET events = 1, bytes = ?, dead_letters = 1", (len(payload),))

    # when
    async with opened(path, HandClock(START)) as outbox:
        [stored] = await outbox.fetch(10, Pick.TRIED)
        [letter] = await outbox.dead_letters.list(DeadLetterFilter(), after=0, limit=10)

    # then
    at = accepted_at
    assert stored == Stored(7, message_id, payload, at, at + 1, 2, at + 2, traceparent="")
    assert letter == DeadLetter(3, message_id, payload, at, Refusal("400", 400, "no"), 1, 5, 6, traceparent="")


async def test_a_migration_that_fails_half_way_leaves_the_file_as_it_was(old_file: Path) -> None:
    # given: a row that the new table refuses, far into the step
    with database(old_file) as connection:
        connection.execute("CREATE TABLE precious (line TEXT)")
        connection.execute("CREATE INDEX event_2_taken ON event (id)")
        connection.execute("ALTER TABLE precious RENAME TO event_2")
    before = dump(old_file)

    # when
    with pytest.raises(OutboxUnusableError, match=r"outbox\.db"):
        async with opened(old_file, HandClock(START)):
            pass

    # then
    assert dump(old_file) == before


async def test_a_migration_that_fails_after_it_copied_the_events_leaves_the_file_as_it_was(old_file: Path) -> None:
    # given: a view that the renaming of the new table trips over, once the old one is gone
    with database(old_file) as connection:
        connection.execute("CREATE VIEW by_age AS SELECT replayed_at FROM event")
    before = dump(old_file)

    # when
    with pytest.raises(OutboxUnusableError):
        async with opened(old_file, HandClock(START)):
            pass

    # then
    assert dump(old_file) == before
    assert before[0] == 1


async def test_a_file_whose_migration_failed_is_taken_up_once_it_is_mended(old_file: Path) -> None:
    # given
    with database(old_file) as connection:
        connection.execute("CREATE VIEW by_age AS SELECT replayed_at FROM event")
    with pytest.raises(OutboxUnusableError):
        async with opened(old_file, HandClock(START)):
            pass

    # when
    with database(old_file) as connection:
        connection.execute("DROP VIEW by_age")

    # then
    async with opened(old_file, HandClock(START)) as outbox:
        assert outbox.stats().events == WAITING
        assert outbox.stats().dead_letters == DEAD
