"""What is on the disk at the moment of an OK is all that a power cut leaves, and it is enough.

A library that is preloaded into the process (synced.c, compiled here) copies the outbox's two files at each fsync and
fdatasync. The copy is the disk after a power cut at that moment, if the disk keeps what was synced and nothing else.

Not covered: disks and controllers that say "synced" and lie; sectors torn in the middle of a write; writes that were
not synced and survive all the same, in any order (SQLite's checksums and salts are there for those); the sync of the
folder's entry when the file is made; and a file system that loses its own journal. SQLite's -shm file is not kept,
because it is rebuilt from the others, nor its rollback journal, which is in use only while the file is empty.

Run by itself, this module is the process that is observed: `python -m tests.acceptance.test_power_loss FILE MODE`.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.clock import SystemClock
from service.outbox.base import DeadLetterFilter, Pick, Refusal
from service.outbox.capacity import Bounds
from service.outbox.sqlite.outbox import SqliteOutbox
from service.outbox.sqlite.write_ahead_log import CHECKPOINT_FRAMES
from tests.acceptance.crashes import CrashRun, drawn_seed
from tests.support.events import entry
from tests.support.paths import PROJECT
from tests.support.preloading import compiled, why_no_preloading
from tests.support.sizes import sized

POWER_CUTS = sized(3, 5)
ROUNDS = 24  # OKs of the observed process; enough that its log is folded into its file
BATCH = 32  # events put at once
FILLING = "x" * 24_000  # makes an event take six pages and more
MANY = 100_000  # more events than any of these tests has


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload."""
    if (reason := why_no_preloading()) is not None:
        pytest.skip(reason)
    return compiled(Path(__file__).with_name("synced.c"), tmp_path_factory.mktemp("library"))


@dataclass(frozen=True)
class CutDisk:
    """An outbox file, and beside it what was synced of it."""

    library: Path
    outbox: Path
    copies: Path

    @classmethod
    def make(cls, library: Path, folder: Path) -> "CutDisk":
        """Make both in a folder."""
        copies = folder / "copies"
        copies.mkdir()
        return cls(library, folder.resolve() / "outbox.db", copies)

    def environment(self, **more: str) -> dict[str, str]:
        """The variables with which a process keeps the copy."""
        return {
            "LD_PRELOAD": str(self.library),
            "SYNCED_FILE": str(self.outbox),
            "SYNCED_COPY": str(self.copies),
        } | more

    def put_synced_at(self, path: Path) -> None:
        """Put what was synced where an outbox is opened; nothing else stays there."""
        for end in ("", "-wal", "-shm"):
            source, target = self.copies / f"synced{end}", path.with_name(path.name + end)
            target.unlink(missing_ok=True)
            if source.exists():
                shutil.copyfile(source, target)

    def cut(self) -> None:
        """Cut the power of a machine whose process is dead: only what was synced is left."""
        self.put_synced_at(self.outbox)


# -- the whole server


async def test_no_acknowledged_event_is_lost_when_the_power_fails_again_and_again(
    library: Path, tmp_path: Path
) -> None:
    # given
    disk = CutDisk.make(library, tmp_path)
    run = CrashRun(disk.outbox, drawn_seed(), environment=disk.environment(), after_kill=disk.cut)

    # when
    verdict = await run.run(POWER_CUTS)

    # then
    assert verdict.faults == {}
    assert len(verdict.ledger.accepted) > POWER_CUTS


async def test_a_disk_that_lies_about_its_log_is_found_out(library: Path, tmp_path: Path) -> None:
    # given
    disk = CutDisk.make(library, tmp_path)
    environment = disk.environment(SYNC_IGNORED="-wal")
    run = CrashRun(disk.outbox, drawn_seed(), environment=environment, after_kill=disk.cut)

    # when
    verdict = await run.run(POWER_CUTS)

    # then
    assert verdict.lost


# -- the outbox alone, after each OK


def open_outbox(path: Path) -> SqliteOutbox:
    """Open an outbox on the running loop."""
    return SqliteOutbox(path, clock=SystemClock(), window=3600.0, window_ids=MANY, retry_max_delay=1.0, bounds=Bounds())


async def message_ids(path: Path) -> set[str]:
    """The ids of everything that an outbox file holds, waiting or given up."""
    outbox = open_outbox(path)
    try:
        waiting = await outbox.fetch(MANY) + await outbox.fetch(MANY, Pick.TRIED)
        letters = await outbox.dead_letters.list(DeadLetterFilter(), after=0, limit=MANY)
        return {stored.message_id for stored in waiting} | {letter.message_id for letter in letters}
    finally:
        await outbox.close()


@contextlib.contextmanager
def observed(disk: CutDisk, synchronous: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run this module on a disk; gives what reads its next OK.

    The process waits in each OK until the next is asked for, so that the disk stands still meanwhile.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "tests.acceptance.test_power_loss", disk.outbox, synchronous],
        cwd=PROJECT,
        env=os.environ | disk.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def next_ok() -> dict[str, Any]:
            stdin.write("go\n")
            stdin.flush()
            said: dict[str, Any] = json.loads(stdout.readline())
            return said

        try:
            yield next_ok
        finally:
            process.kill()


async def losses(disk: CutDisk, synchronous: str, rounds: int = ROUNDS) -> AsyncIterator[set[str]]:
    """After each OK, the events that a power cut at this moment would lose."""
    after_cut = disk.outbox.with_name("after_cut.db")
    with observed(disk, synchronous) as next_ok:
        for _ in range(rounds):
            line = next_ok()
            disk.put_synced_at(after_cut)
            yield set(line["accepted"]) - set(line["delivered"]) - await message_ids(after_cut)


async def test_at_each_ok_every_acknowledged_event_is_synced(library: Path, tmp_path: Path) -> None:
    # given
    disk = CutDisk.make(library, tmp_path)

    # when
    found = [lost async for lost in losses(disk, "FULL")]

    # then
    assert found == [set()] * ROUNDS
    copy = disk.copies / "synced"
    assert copy.stat().st_size > CHECKPOINT_FRAMES * 4096 / 2, "the log was not folded into the file, so that is unseen"


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
async def test_an_outbox_that_does_not_sync_is_found_out(library: Path, tmp_path: Path, synchronous: str) -> None:
    # given
    disk = CutDisk.make(library, tmp_path)

    # when
    lost = [lost async for lost in losses(disk, synchronous, rounds=1)]

    # then
    assert all(lost)


# -- the observed process


async def run_observed(path: Path, synchronous: str) -> None:
    """Put and settle events, and print after each OK what was accepted and delivered so far.

    Args:
        path: the outbox file.
        synchronous: the PRAGMA; the service itself sets FULL, anything else spoils the outbox on purpose.
    """
    outbox = open_outbox(path)
    outbox._file._connection.execute(f"PRAGMA synchronous = {synchronous}")
    accepted: list[str] = []
    delivered: list[str] = []
    for number in range(ROUNDS):
        sys.stdin.readline()
        events = [large_entry(number * BATCH + index) for index in range(BATCH)]
        await outbox.put(events)
        accepted += [event.message_id for event in events]
        fetched = await outbox.fetch(BATCH // 2)
        for index, stored in enumerate(fetched):
            if index == 0:
                outbox.term(stored, Refusal("400", 400, "no"))
            elif index == 1:
                outbox.nak(stored, 0.0)
            else:
                outbox.ack(stored)
                delivered.append(stored.message_id)
        await outbox.flush()
        print(json.dumps({"accepted": accepted, "delivered": delivered}), flush=True)  # noqa: T201  # it is the answer
    await outbox.close()


def large_entry(number: int) -> Any:
    """An event of several pages."""
    small = entry(number)
    return small._replace(payload=small.payload + _unknown_field(FILLING))


def _unknown_field(text: str) -> bytes:
    """A field that Event does not have: it makes the bytes longer and leaves what they say."""
    length = len(text)
    return b"\xfa\x07" + bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14)) + text.encode()


if __name__ == "__main__":
    asyncio.run(run_observed(Path(sys.argv[1]), sys.argv[2]))
