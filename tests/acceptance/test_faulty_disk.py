"""A disk that fails on demand (faulty_disk.c), and what a server does on it that no oracle counts."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from service.outbox.sqlite.database import Database
from service.sandbox.server import Behaviour
from tests.acceptance.crashes import connected, send_one
from tests.acceptance.disk_faults import UNUSABLE
from tests.acceptance.oracle import Events
from tests.support.faulty_disk import Fault, FaultyDisk, Mode
from tests.support.preloading import why_no_preloading
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until, until_blocking

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
    events = Events("large", 4_000)
    async with running_sandbox(Behaviour({"503": 1.0})) as sandbox:
        settings = settings_for(tmp_path / "outbox.db", sandbox)
        server = await ServerProcess.start(settings, disk.environment())
        try:
            async with connected(server) as stub:
                # given a commit of many pages whose sync fails, and a shorter one that overwrites its beginning
                disk.fail(Fault(Mode.REFUSE_SYNCS))
                with pytest.raises(grpc.aio.AioRpcError, match="the disk of the outbox refuses writes"):
                    await send_one(stub, events, 1)
                before = disk.met["refused syncs"]
                await until(lambda: disk.met["refused syncs"] > before)

            # when
            await server.kill()
            disk.mend()
            server = await ServerProcess.start(settings, disk.environment())
        finally:
            await server.kill()

    # then
    assert server.errors == []


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
