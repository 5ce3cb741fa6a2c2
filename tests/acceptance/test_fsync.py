"""An OK means on disk: what the kernel saw between a call and its answer."""

import asyncio
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Behaviour
from tests.support.events import track
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, running_server
from tests.support.waiting import DEADLINE, until

STRACE = shutil.which("strace")
CALLERS = 64
CALLS = 10  # of each caller
SLOW_DISK = ("-e", "inject=fsync,fdatasync:delay_enter=10000")  # microseconds; so that callers come while it syncs

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


@asynccontextmanager
async def traced(server: ServerProcess, log: Path, *options: str) -> AsyncIterator[None]:
    """Write down every fsync that the server makes meanwhile."""
    assert STRACE is not None
    process = await asyncio.create_subprocess_exec(
        STRACE,
        "-f",
        "-e",
        "trace=fsync,fdatasync",
        *options,
        "-o",
        str(log),
        "-p",
        str(server.process.pid),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE):
        said = await process.stderr.readline()
    if b"attached" not in said:
        process.kill()
        await process.communicate()
        pytest.skip(f"strace may not trace here: {said.decode().strip()}")
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()


def fsyncs(log: Path) -> int:
    """How many fsyncs of a file have succeeded so far."""
    return len(
        re.findall(r"(?:fsync|fdatasync).*= 0(?: \(DELAYED\))?$", log.read_text() if log.exists() else "", re.MULTILINE)
    )


@asynccontextmanager
async def outage(folder: Path) -> AsyncIterator[tuple[ServerProcess, grpc.aio.Channel]]:
    """Run a server whose relay settles nothing, so that every fsync is one of an event taken in."""
    async with running_sandbox() as sandbox:
        sandbox.behaviour = Behaviour({"hang": 1})
        async with (
            running_server(sandbox, folder, shutdown_grace="0s", request_timeout="1h") as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            yield server, channel


async def test_an_event_is_fsynced_before_its_ok(tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    async with outage(tmp_path) as (server, channel):
        events = EventServiceStub(channel)
        await events.Track(TrackRequest(track=track(0)))
        async with traced(server, log):
            for number in range(1, 6):
                before = fsyncs(log)
                await events.Track(TrackRequest(track=track(number)))
                assert fsyncs(log) > before


async def test_callers_at_the_same_time_share_fsyncs(tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    async with outage(tmp_path) as (server, channel):
        events = EventServiceStub(channel)
        await events.Track(TrackRequest(track=track(0)))
        async with traced(server, log, *SLOW_DISK):

            async def call(caller: int) -> None:
                for number in range(CALLS):
                    await events.Track(TrackRequest(track=track(1 + CALLS * caller + number)))

            await asyncio.gather(*map(call, range(CALLERS)))
            await until(lambda: fsyncs(log) > 0)
    assert fsyncs(log) < CALLERS * CALLS / 4  # one each without sharing
