"""A full disk: callers are told to come again, what was acknowledged stays, and it goes on by itself with new room.

The disk that fills is a small tmpfs where the test may mount one. Everywhere on Linux the same is shown with a limit on
the size of the server's files, which the kernel enforces with an error of its own (EFBIG; for a full disk ENOSPC).
"""

import asyncio
import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from pointillist_destination.v1 import event_service_pb2
from service.errors import OutboxFullError
from service.outbox.capacity import DISK_CHECK_INTERVAL, Bounds
from service.outbox.sqlite.outbox import SqliteOutbox
from service.sandbox.server import Behaviour, Sandbox
from tests.acceptance.crashes import Stub, connected, drained, send_one
from tests.acceptance.oracle import Events, Evidence, Ledger, Verdict
from tests.acceptance.test_power_loss import large_entry
from tests.support.clock import HandClock
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE

MIB = 1024 * 1024
MAX_FILE = 3 * MIB  # what a file of the limited server may grow to
SMALL_DISK = 8 * MIB
LARGE_DISK = 64 * MIB  # the floor is looked at twice a second, so it has to be high above what comes in meanwhile
FLOOR = LARGE_DISK // 2 - 8 * MIB  # half the disk is somebody else's
MAX_TEXT = 1500  # words in an event, so that not many are needed
MAX_SENT = 20_000  # events after which the disk should have been full long ago
BATCH = 20  # events

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prlimit and tmpfs are Linux's")


@dataclass
class Caller:
    """Sends one event after another, and keeps the ledger."""

    stub: Stub
    ledger: Ledger

    async def send(self) -> grpc.aio.AioRpcError | None:
        """Send one event; returns the error that it ended with."""
        number = self.ledger.draw()
        try:
            await send_one(self.stub, self.ledger.events, number)
        except grpc.aio.AioRpcError as error:
            self.ledger.lost_sight_of([number])
            return error
        self.ledger.answered([number])
        return None

    async def send_until_refused(self) -> grpc.aio.AioRpcError:
        """Send until the server takes no more; returns what it said."""
        for _ in range(MAX_SENT):
            if (error := await self.send()) is not None:
                return error
        raise AssertionError(f"{MAX_SENT} events were taken, and the disk was never full")

    async def send_until_taken(self) -> None:
        """Send until the server takes one again."""
        async with asyncio.timeout(DEADLINE):
            while (error := await self.send()) is not None:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error


def details(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """The reason of an error, and the seconds after which to try again."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return info.reason, retry.retry_delay.ToMilliseconds() / 1000


def assert_told_to_come_again(error: grpc.aio.AioRpcError, expected: str) -> None:
    """What a refused caller has to be told."""
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    reason, retry_after = details(error)
    assert reason == expected
    assert retry_after > 0


@dataclass
class Scene:
    """A server that is about to run out of disk, its only caller, and Pointillist, which is down for now."""

    sandbox: Sandbox
    server: ServerProcess
    caller: Caller

    async def check(self) -> None:
        """Let Pointillist recover, wait until all is delivered, and see that it is just what was acknowledged.

        No process was killed after the last OK, so what was refused is nowhere, and nothing comes twice.
        """
        self.sandbox.behaviour = Behaviour()
        await drained(self.server)
        evidence = Evidence(self.caller.ledger.events)
        evidence.take_from(self.sandbox)
        evidence.look_at_dead_letters(await self.server.dead_letters())
        assert Verdict(self.caller.ledger, evidence).faults == {}
        assert evidence.delivered == self.caller.ledger.accepted
        assert evidence.duplicates == 0


@contextlib.asynccontextmanager
async def scene(outbox: Path, **settings: str) -> AsyncIterator[Scene]:
    """Set it up."""
    async with running_sandbox(Behaviour({"503": 1.0})) as sandbox:
        server = await ServerProcess.start(settings_for(outbox, sandbox, **settings))
        try:
            async with connected(server) as stub:
                ledger = Ledger(Events("full", MAX_TEXT), Random(0))
                yield Scene(sandbox, server, Caller(stub, ledger))
                await server.stop()
        finally:
            await server.kill()


# -- a limit on the size of a file, everywhere on Linux


def limit_files(server: ServerProcess, size: int) -> None:
    """Let no file of a server grow beyond a size; Python ignores the signal that comes with the error."""
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@linux_only
async def test_callers_are_told_to_come_again_while_the_file_cannot_grow_and_nothing_is_lost(tmp_path: Path) -> None:
    async with scene(tmp_path / "outbox.db") as full:
        # given
        limit_files(full.server, MAX_FILE)

        # when
        error = await full.caller.send_until_refused()
        limit_files(full.server, resource.RLIM_INFINITY)
        await full.caller.send_until_taken()

        # then
        assert_told_to_come_again(error, "OUTBOX_UNAVAILABLE")  # EFBIG: the disk has space
        await full.check()


@linux_only
async def test_what_was_acknowledged_before_the_file_could_not_grow_outlives_a_kill(tmp_path: Path) -> None:
    async with running_sandbox(Behaviour({"503": 1.0})) as sandbox:
        settings = settings_for(tmp_path / "outbox.db", sandbox)
        server = await ServerProcess.start(settings)
        ledger = Ledger(Events("full", MAX_TEXT), Random(0))
        try:
            # given
            limit_files(server, MAX_FILE)
            async with connected(server) as stub:
                await Caller(stub, ledger).send_until_refused()

            # when
            await server.kill()
            server = await ServerProcess.start(settings)

            # then
            async with connected(server) as stub:
                await Scene(sandbox, server, Caller(stub, ledger)).check()
        finally:
            await server.kill()


@linux_only
async def test_a_batch_that_was_read_waits_for_room_and_its_stream_does_not_fail(tmp_path: Path) -> None:
    async with scene(tmp_path / "outbox.db") as full:
        caller, ledger = full.caller, full.caller.ledger
        call = caller.stub.BatchSend()  # it is being read before the disk is full
        await call.write(event_service_pb2.BatchSendRequest(sequence=6))
        await call.read()
        limit_files(full.server, MAX_FILE)
        await caller.send_until_refused()
        limit_files(full.server, 1)  # so that nothing fits, also where the log begins anew

        # given
        numbers = range(ledger.sent + 1, ledger.sent + 1 + BATCH)
        ledger.sent += BATCH
        events = [ledger.events.event(number) for number in numbers]
        await call.write(event_service_pb2.BatchSendRequest(sequence=7, events=events))
        answering = asyncio.create_task(call.read())
        received = "grpc_server_msg_received_total{BatchSend,pointillist_destination.v1.EventService,bidi_stream}"
        await full.server.until_metrics(lambda metrics: metrics[received] == 2)
        again = await caller.send()
        waited = not answering.done()

        # when
        limit_files(full.server, resource.RLIM_INFINITY)
        async with asyncio.timeout(DEADLINE):
            answer = await answering
        await call.done_writing()

        # then
        assert again is not None
        assert waited
        assert answer == event_service_pb2.BatchSendResponse(sequence=7, accepted=BATCH)
        ledger.answered(numbers)
        await full.check()


# -- a disk that is full


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("needs root and mount, for a small tmpfs; the tests with a limit on files show the same")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount_disk(size: int) -> Path:
        command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"may not mount a tmpfs here: {result.stderr.strip()}")
        return folder

    try:
        yield mount_disk
    finally:
        if folder.is_mount():
            subprocess.run([umount, folder], check=True)


def fill_half(folder: Path) -> Callable[[], None]:
    """Have somebody else's file take half of a disk; gives what deletes it."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).total // 2))
    return ballast.unlink


async def test_a_full_disk_loses_nothing_and_is_taken_up_again_when_it_has_room(
    mounted: Callable[[int], Path],
) -> None:
    disk = mounted(SMALL_DISK)
    make_room = fill_half(disk)
    async with scene(disk / "outbox.db") as full:
        # when
        error = await full.caller.send_until_refused()
        make_room()
        await full.caller.send_until_taken()

        # then
        assert_told_to_come_again(error, "OUTBOX_FULL")
        await full.check()


async def test_the_floor_of_free_disk_is_respected(mounted: Callable[[int], Path]) -> None:
    disk = mounted(LARGE_DISK)
    make_room = fill_half(disk)
    async with scene(disk / "outbox.db", disk_free_floor=str(FLOOR)) as full:
        # when
        error = await full.caller.send_until_refused()
        free = shutil.disk_usage(disk).free
        make_room()
        await full.caller.send_until_taken()

        # then
        assert_told_to_come_again(error, "OUTBOX_FULL")
        assert "POINTILLIST_DISK_FREE_FLOOR" in str(error.details())
        assert 0 < free < FLOOR
        await full.check()


# -- the outbox alone, on a disk that is a parameter


async def test_an_outbox_that_filled_its_disk_to_the_floor_takes_events_again_once_it_is_empty(tmp_path: Path) -> None:
    # given
    clock = HandClock()
    outbox = SqliteOutbox(
        tmp_path / "outbox.db",
        clock=clock,
        window=3600.0,
        window_ids=MAX_SENT,
        retry_max_delay=1.0,
        bounds=Bounds(disk_free=FLOOR),
        disk_free=lambda folder: 2 * LARGE_DISK - sum(file.stat().st_size for file in folder.iterdir()),
    )
    numbers = iter(range(MAX_SENT))

    async def fill() -> None:
        while True:
            await outbox.put([large_entry(next(numbers)) for _ in range(100)])
            clock.move(DISK_CHECK_INTERVAL)

    with pytest.raises(OutboxFullError, match="POINTILLIST_DISK_FREE_FLOOR"):
        await fill()

    # when
    while fetched := await outbox.fetch(1000):
        for stored in fetched:
            outbox.ack(stored)
        await outbox.flush()
    clock.move(DISK_CHECK_INTERVAL)

    # then
    assert await outbox.put([large_entry(next(numbers))]) == [True]
    await outbox.close()
