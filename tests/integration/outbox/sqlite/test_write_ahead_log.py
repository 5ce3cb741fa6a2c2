"""The write-ahead log of an outbox file: it is bounded, and a log that was read in part is reported."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from service.errors import OutboxFullError
from service.outbox.capacity import REFUSED_PAUSE, Bounds
from service.outbox.sqlite import write_ahead_log, writer
from service.outbox.sqlite.outbox import SqliteOutbox
from service.outbox.sqlite.write_ahead_log import FRAME_HEADER_SIZE, HEADER_SIZE
from tests.support.clock import HandClock
from tests.support.events import entries
from tests.support.outboxes import opened, sqlite_error
from tests.support.waiting import until

PAGE = 4096  # bytes


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read the file as another program does, and do not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM event").fetchall()
        yield


async def put_and_settle(outbox: SqliteOutbox, first: int, count: int = 200) -> None:
    """Put events and settle them."""
    await outbox.put(entries(count, first=first))
    for stored in await outbox.fetch(count):
        outbox.ack(stored)
    await outbox.flush()


async def test_the_log_is_bounded_while_nothing_is_in_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_ahead_log, "CHECKPOINT_FRAMES", 200)
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        outbox._file.log._due_at = 200
        for number in range(40):
            await put_and_settle(outbox, 200 * number)
        assert outbox._file.log.checkpoints > 3
        assert outbox.totals.incomplete_checkpoints == 0
        assert outbox.totals.log_bytes < 1000 * PAGE


async def test_a_log_that_a_reader_holds_on_counts_in_the_bound_until_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given
    path, clock, resting = tmp_path / "outbox.db", HandClock(), 50 * PAGE
    for module in (writer, write_ahead_log):
        monkeypatch.setattr(module, "RESTING_SIZE", resting)
    for name in ("CHECKPOINT_FRAMES", "RETRY_FRAMES"):
        monkeypatch.setattr(write_ahead_log, name, 20)
    async with opened(path, clock, bounds=Bounds(bytes=2 * 1024 * 1024)) as outbox:
        outbox._file._connection.execute(f"PRAGMA journal_size_limit = {resting}")
        outbox._file.log._due_at = 20
        await put_and_settle(outbox, 0)

        # when a reader holds on
        with reading(path):
            number = 1
            with pytest.raises(OutboxFullError):  # noqa: PT012
                while number < 1000:
                    await put_and_settle(outbox, 200 * number)
                    number += 1

            # then the outbox is full before the log is much larger than its bound
            assert outbox.stats().events < 400
            assert outbox.totals.log_bytes < 3 * 1024 * 1024
            assert outbox.totals.incomplete_checkpoints > 0
            assert capsys.readouterr().out.count("checkpoint of the outbox is incomplete") == 1

        # and once it has ended, the log is cut though nobody comes
        clock.move(REFUSED_PAUSE)
        await outbox.flush()
        clock.move(REFUSED_PAUSE)
        await until(lambda: outbox.full() is None)
        assert outbox.totals.log_bytes <= resting + HEADER_SIZE
        assert "checkpoint of the outbox is complete again" in capsys.readouterr().out


async def test_a_checkpoint_that_fails_is_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FailingConnection:
        def execute(self, _: str) -> None:
            raise sqlite_error(sqlite3.SQLITE_IOERR)

    for name in ("CHECKPOINT_FRAMES", "RETRY_FRAMES"):
        monkeypatch.setattr(write_ahead_log, name, 5)
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        log = outbox._file.log
        log._due_at = 5
        connection, log._connection = log._connection, FailingConnection()  # type: ignore[assignment]
        for number in range(3):
            await put_and_settle(outbox, 200 * number)
        assert outbox.totals.incomplete_checkpoints >= 2
        assert capsys.readouterr().out.count("checkpoint of the outbox is incomplete") == 1
        log._connection = connection
        await put_and_settle(outbox, 600)
        await outbox.flush()
        assert "checkpoint of the outbox is complete again" in capsys.readouterr().out


async def copied_while_open(path: Path, copy: Path) -> int:
    """Copy an outbox with commits in its log, as a crash leaves it; return the number of frames in the log."""
    async with opened(path, HandClock()) as outbox:
        for number in range(10):
            await outbox.put(entries(20, first=20 * number))
        for end in ("", "-wal"):
            shutil.copy(path.with_name(path.name + end), copy.with_name(copy.name + end))
        return outbox._file.log.frames()


async def test_a_log_of_which_less_was_read_than_it_holds_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a log with a bit flipped in its middle
    copy = tmp_path / "copy.db"
    frames = await copied_while_open(tmp_path / "outbox.db", copy)
    with copy.with_name("copy.db-wal").open("r+b") as file:
        file.seek(HEADER_SIZE + frames // 2 * (FRAME_HEADER_SIZE + PAGE) + 1000)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))

    # when
    async with opened(copy, HandClock()) as outbox:
        assert 0 < outbox.stats().events < 200

    # then
    assert "write-ahead log of the outbox is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 2, 500, FRAME_HEADER_SIZE + PAGE, 3 * (FRAME_HEADER_SIZE + PAGE) + 7])
async def test_a_log_that_ends_in_an_unfinished_transaction_is_not_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    copy = tmp_path / "copy.db"
    await copied_while_open(tmp_path / "outbox.db", copy)
    log = copy.with_name("copy.db-wal")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - cut)
    async with opened(copy, HandClock()) as outbox:
        assert outbox.stats().events == 180
    assert "damaged" not in capsys.readouterr().out
