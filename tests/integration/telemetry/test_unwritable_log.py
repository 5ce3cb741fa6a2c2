"""Processes whose log nobody reads: they do their work, and end."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import grpc
import orjson
import pytest

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Sandbox
from tests.support.events import track
from tests.support.paths import PROJECT
from tests.support.processes import command, environment
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until

pytestmark = pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="only Linux has small pipes")

CAPACITY = 4096  # bytes of the pipe
CALLS = 40  # whose lines are longer than the pipe, together
LINES = 1000
EXIT_TIME = 10.0  # seconds for an exit that waits for the log for one second, on a busy machine

PROGRAM = f"""
import structlog
from service.telemetry.logs import configure_logging
configure_logging("info", "json")
for number in range({LINES}):
    structlog.get_logger().info("line", number=number)
"""


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A small pipe: its reader, and its writer for a process."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, CAPACITY)
    with os.fdopen(reader, "rb", buffering=0) as readable, os.fdopen(writer, "wb", buffering=0) as writable:
        yield readable, writable


@asynccontextmanager
async def serving(folder: Path, pipe: tuple[BinaryIO, BinaryIO]) -> AsyncIterator[ServerProcess]:
    """Run a server whose log is read up to the line that it serves, and no further."""
    reader, writer = pipe
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    process = await asyncio.create_subprocess_exec(
        *command("serve"),
        cwd=PROJECT,
        env=environment(settings_for(folder / "outbox.db", sandbox)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=writer,
    )
    writer.close()
    server = ServerProcess(process)
    try:
        while line := await asyncio.to_thread(reader.readline):
            said = orjson.loads(line)
            if said["event"] == "serving":
                server.address, server.metrics_url = said["address"], f"http://{said['metrics']}/metrics"
                break
        yield server
    finally:
        await server.kill()
        await sandbox.stop()


async def calls_that_are_logged(server: ServerProcess) -> set[grpc.StatusCode]:
    """Make calls, each of which is a line of the log; return the codes that they end in."""
    codes = set()
    async with grpc.aio.insecure_channel(server.address) as channel:
        events = EventServiceStub(channel)
        for _ in range(CALLS):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await events.Track(TrackRequest(), timeout=DEADLINE)
            codes.add(error.value.code())
        await events.Track(TrackRequest(track=track(1)), timeout=DEADLINE)
    return codes


async def test_a_server_whose_log_nobody_reads_answers_and_stops(
    tmp_path: Path, pipe: tuple[BinaryIO, BinaryIO]
) -> None:
    async with serving(tmp_path, pipe) as server:
        # when
        codes = await calls_that_are_logged(server)
        async with asyncio.timeout(EXIT_TIME):
            await server.stop()

    # then
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
    assert pipe[0].read(2 * CAPACITY).count(b'"call"') < CALLS  # the pipe was full


async def test_a_server_whose_log_has_lost_its_reader_answers_counts_and_stops(
    tmp_path: Path, pipe: tuple[BinaryIO, BinaryIO]
) -> None:
    async with serving(tmp_path, pipe) as server:
        # given
        pipe[0].close()

        # when
        codes = await calls_that_are_logged(server)

        # then
        assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
        dropped = 0.0
        async with asyncio.timeout(DEADLINE):
            while dropped < CALLS:
                dropped = (await server.metrics())["log_lines_dropped_total"]
        await server.stop()


def test_lines_logged_before_an_orderly_exit_are_written() -> None:
    # when
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        timeout=DEADLINE,
        check=True,
    )

    # then
    assert [orjson.loads(line)["number"] for line in ended.stderr.splitlines()] == list(range(LINES))


def test_a_process_whose_log_nobody_reads_exits(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    # when
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=PROJECT, env=environment(), stderr=pipe[1], timeout=EXIT_TIME, check=False
    )

    # then
    assert ended.returncode == 0
    assert len(pipe[0].read(2 * CAPACITY).splitlines()) < LINES


async def test_a_server_without_standard_error_keeps_its_descriptor_from_the_outbox_and_stops(tmp_path: Path) -> None:
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    try:
        # given
        process = await asyncio.create_subprocess_exec(
            "sh",
            *("-c", 'exec "$@" 2>&-', "sh"),
            *command("serve"),
            cwd=PROJECT,
            env=environment(settings_for(tmp_path / "outbox.db", sandbox)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        folder = Path(f"/proc/{process.pid}")

        # when it catches SIGTERM, then its descriptor 2 is nobody's file
        await until(lambda: handles(folder, signal.SIGTERM) and (tmp_path / "outbox.db-wal").exists())
        assert (folder / "fd" / "2").readlink() == Path(os.devnull)
        process.terminate()
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await sandbox.stop()


def handles(process: Path, number: int) -> bool:
    """Return True if a process has a handler for a signal."""
    [mask] = [line.split()[1] for line in (process / "status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)
