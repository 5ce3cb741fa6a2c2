"""A disk that refuses, is full, hangs or is slow, while callers send and the server is killed: nothing is lost.

Nor is anything delivered twice without a crash, and memory stays within its bound. The disk is a library that is
preloaded into the server (faulty_disk.c, compiled here). `python -m tests.acceptance.soak --disk-faults 100` runs the
same for as long as one likes.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import grpc
import pytest

from service.outbox.sqlite.database import Database
from service.sandbox.server import Behaviour
from tests.acceptance.crashes import Stub, connected, drawn_seed, send_one
from tests.acceptance.disk_faults import MAX_GROWTH, UNUSABLE, DiskFaultRun, DiskFaultVerdict
from tests.acceptance.oracle import Events, Evidence, Ledger, Repeats
from tests.support.faulty_disk import Fault, FaultyDisk, Mode
from tests.support.preloading import why_no_preloading
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.sizes import sized
from tests.support.waiting import DEADLINE, until_blocking

FAULTS = sized(4, 20)
RETRY_PAUSE = 0.1  # seconds
INSERT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
try:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS event (payload)")
    connection.execute("INSERT INTO event VALUES (randomblob(100000))")
    print("stored")
except sqlite3.Error as error:
    print(error)
"""

pytestmark = pytest.mark.skipif(why_no_preloading() is not None, reason=str(why_no_preloading()))


async def test_nothing_is_lost_or_repeated_while_the_disk_fails_and_the_server_is_killed(tmp_path: Path) -> None:
    # given
    longest = sized(0.4, 4.0)
    run = DiskFaultRun(tmp_path / "outbox.db", drawn_seed(), max_fault=longest, max_pause=longest, max_life=3 * longest)

    # when
    verdict = await run.run(FAULTS)

    # then
    assert verdict.faults == {}
    assert run.faults.total() == FAULTS
    assert run.kills > 0
    assert len(verdict.ledger.accepted) > FAULTS


@pytest.mark.parametrize("fault", [Fault(Mode.REFUSE), Fault(Mode.FULL)], ids=["refuses", "full"])
@pytest.mark.parametrize("is_new", [True, False], ids=["new file", "earlier file"])
async def test_a_server_that_cannot_start_on_a_bad_disk_says_so(tmp_path: Path, fault: Fault, *, is_new: bool) -> None:
    # given
    disk = FaultyDisk(tmp_path / "outbox.db", tmp_path)
    if not is_new:
        Database(tmp_path / "outbox.db", window=1.0, window_ids=1).close()
    disk.fail(fault)

    # when
    async with running_sandbox() as sandbox:
        server = await ServerProcess.spawn(settings_for(tmp_path / "outbox.db", sandbox), disk.environment())
        with pytest.raises(AssertionError, match="ended before it served"):
            await server.serving()

    # then
    assert await server.process.wait() == UNUSABLE
    assert f"outbox {tmp_path / 'outbox.db'}: " in server.log[-1]
    assert "the disk " in server.log[-1]


async def test_a_commit_that_the_disk_refused_is_no_damage_of_the_log_after_a_kill(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "outbox.db", tmp_path)
    events = Events("large", 20_000)
    async with running_sandbox(Behaviour({"503": 1.0})) as sandbox:
        settings = settings_for(tmp_path / "outbox.db", sandbox)
        server = await ServerProcess.start(settings, disk.environment())
        try:
            async with connected(server) as stub:
                # given a commit of many pages whose sync fails, and a shorter one that overwrites its beginning
                disk.fail(Fault(Mode.REFUSE_SYNCS))
                with pytest.raises(grpc.aio.AioRpcError):
                    await send_one(stub, events, 1)
                disk.mend()
                await until_accepting(stub, Events("small", 10))

            # when
            await server.kill()
            server = await ServerProcess.start(settings, disk.environment())
        finally:
            await server.kill()

    # then
    assert server.errors == []


async def until_accepting(stub: Stub, events: Events) -> None:
    """Send an event until it is accepted."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await send_one(stub, events, 1)
                return
            await asyncio.sleep(RETRY_PAUSE)


class TestTheDisk:
    """It fails as it is told to, and no other disk does."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> FaultyDisk:
        """A disk with an outbox.db on it."""
        return FaultyDisk(tmp_path / "outbox.db", tmp_path)

    def insert(self, disk: FaultyDisk, path: Path) -> "subprocess.Popen[str]":
        """Start a process that writes 100 kB with SQLite, and says how that went."""
        command = [sys.executable, "-c", INSERT, str(path)]
        return subprocess.Popen(command, env=os.environ | disk.environment(), stdout=subprocess.PIPE, text=True)

    def outcome(self, process: "subprocess.Popen[str]") -> str:
        """How it went."""
        return process.communicate(timeout=DEADLINE)[0].strip()

    @pytest.mark.parametrize(
        ("fault", "outcome", "met"),
        [
            (Fault(Mode.GOOD), "stored", set()),
            (Fault(Mode.REFUSE), "disk I/O error", {"refused writes", "refused truncations"}),
            (Fault(Mode.REFUSE_SYNCS), "disk I/O error", {"refused syncs"}),
            (Fault(Mode.FULL), "disk I/O error", {"writes without space"}),  # SQLite's word for an index of no size
            (Fault(Mode.FULL, room=50_000), "database or disk is full", {"writes without space"}),
            (Fault(Mode.FULL, room=1_000_000), "stored", set()),
            (Fault(Mode.HANG, wait=0.05), "stored", {"hung syncs"}),
            (Fault(Mode.SLOW, wait=0.05), "stored", {"slow syncs"}),
        ],
    )
    def test_it_fails_as_it_is_told_to(
        self, disk: FaultyDisk, tmp_path: Path, fault: Fault, outcome: str, met: set[str]
    ) -> None:
        # given
        self.outcome(self.insert(disk, tmp_path / "outbox.db"))

        # when
        disk.fail(fault)
        said = self.outcome(self.insert(disk, tmp_path / "outbox.db"))

        # then
        assert said == outcome
        assert {kind for kind, count in disk.met.items() if count} <= met
        assert any(disk.met.values()) == bool(met)

    def test_a_sync_hangs_until_the_disk_is_mended(self, disk: FaultyDisk, tmp_path: Path) -> None:
        # given
        disk.fail(Fault(Mode.HANG))
        process = self.insert(disk, tmp_path / "outbox.db")
        until_blocking(lambda: disk.met["hung syncs"])

        # when
        hung = process.poll() is None
        disk.mend()

        # then
        assert hung
        assert self.outcome(process) == "stored"

    def test_other_files_are_not_on_it(self, disk: FaultyDisk, tmp_path: Path) -> None:
        disk.fail(Fault(Mode.REFUSE))

        assert self.outcome(self.insert(disk, tmp_path / "other.db")) == "stored"


class TestTheVerdict:
    """It sees a repeat that no kill explains, and memory beyond the bound."""

    def repeats(self, *lives: tuple[list[int], set[int]]) -> Repeats:
        """Of the deliveries of each life, and the events that were in the outbox at its end."""
        repeats = Repeats()
        for delivered, pending in lives:
            repeats.end_life(delivered, pending)
        return repeats

    def verdict(self, repeats: Repeats, growth: int = 0) -> DiskFaultVerdict:
        """Of a run in which nothing was sent."""
        events = Events("self")
        return DiskFaultVerdict(Ledger(events, Random(0)), Evidence(events), repeats, growth, Counter())

    def test_an_event_that_was_pending_at_a_kill_may_be_delivered_again(self) -> None:
        repeats = self.repeats(([1, 2], {2}), ([2, 3], {2}), ([2], set()))

        assert self.verdict(repeats).faults == {}

    def test_an_event_that_was_delivered_twice_in_one_life_is_found(self) -> None:
        repeats = self.repeats(([1, 2, 1], {1}))

        assert self.verdict(repeats).faults == {"delivered twice without a crash": [1]}

    def test_an_event_that_comes_again_after_it_was_settled_is_found(self) -> None:
        repeats = self.repeats(([1, 2], {2}), ([2], {1}), ([1], set()))

        assert self.verdict(repeats).faults == {"delivered again after they had left the outbox": [1]}

    def test_memory_above_the_bound_is_found(self) -> None:
        faults = self.verdict(Repeats(), MAX_GROWTH + 1).faults

        assert list(faults.values()) == [[MAX_GROWTH + 1]]
