"""The commands as real processes: run to their end, or running until a test has what it wants."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from service.sandbox.server import Sandbox

PROJECT = Path(__file__).parents[2]
EVENTS = PROJECT / "tests" / "data" / "segment_events.jsonl"
DEADLINE = 60.0  # seconds for anything that has to happen at all, on a busy machine too


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def out_lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def err_lines(self) -> list[str]:
        return self.err.splitlines()


async def start(
    *arguments: str, module: str = "service", environ: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start `python -m service`, or another module, with these settings and no others."""
    # Compiled modules are kept, whatever this process was told: a start takes a second without them.
    ours = ("POINTILLIST_", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    stubs = os.pathsep.join([str(PROJECT), str(PROJECT / "generated")])
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=PROJECT,
        env={**inherited, "PYTHONPATH": stubs, **(environ or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process, given: bytes = b"") -> Ended:
    """Give a process its input and wait for its end."""
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(given)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def run(*arguments: str, given: bytes = b"", environ: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end."""
    return await end(await start(*arguments, environ=environ), given)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that serves."""

    process: asyncio.subprocess.Process
    address: str

    async def terminate(self) -> Ended:
        """Send SIGTERM and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return await end(self.process)


@asynccontextmanager
async def running_server(sandbox: Sandbox, folder: Path, **settings: str) -> AsyncIterator[Server]:
    """Run `serve` against a sandbox; its outbox is in the folder, and stays there."""
    environ = {
        "POINTILLIST_API_TOKEN": "token",
        "POINTILLIST_API_URL": sandbox.url,
        "POINTILLIST_GRPC_LISTEN": "127.0.0.1:0",
        "POINTILLIST_METRICS_LISTEN": "",
        "POINTILLIST_OUTBOX_URL": f"sqlite:///{folder}/outbox.db",
        **settings,
    }
    process = await start("serve", environ=environ)
    try:
        yield Server(process, await _served_address(process))
    finally:
        await kill(process)


async def _served_address(process: asyncio.subprocess.Process) -> str:
    """Read the log until the server says where it serves."""
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE):
        while line := await process.stderr.readline():
            if line.startswith(b"{") and (said := json.loads(line))["event"] == "serving":
                return str(said["address"])
    raise AssertionError("the server ended before it served")


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs, and close its pipes."""
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def read_until(stream: asyncio.StreamReader | None, pattern: str) -> list[str]:
    """Read lines up to the first that holds the pattern."""
    assert stream is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE):
        while line := (await stream.readline()).decode():
            lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return lines
    raise AssertionError(f"no line holds {pattern!r}: {lines}")


@asynccontextmanager
async def running_sandbox() -> AsyncIterator[Sandbox]:
    """Run a sandbox in this process, on a free port."""
    sandbox = Sandbox(api_token="token")
    await sandbox.start("127.0.0.1", 0)
    try:
        yield sandbox
    finally:
        await sandbox.stop()


async def until_taken(sandbox: Sandbox, count: int) -> set[str]:
    """Wait until the sandbox has records of that many events; gives their message ids."""
    async with asyncio.timeout(DEADLINE):
        while len(ids := {record.message_id for record in sandbox.records}) < count:  # noqa: ASYNC110  the sandbox sets no event
            await asyncio.sleep(0.01)
    return ids
