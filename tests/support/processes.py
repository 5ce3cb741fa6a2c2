"""Commands as real processes, run to their end or until a test has seen enough; and /proc, which only Linux has."""

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import PROJECT
from tests.support.waiting import DEADLINE

PROC = Path("/proc")


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


def command(*arguments: str, module: str = "service") -> tuple[str, ...]:
    """The words of `python -m service`, or of another module, with these arguments."""
    return (sys.executable, "-m", module, *arguments)


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command that runs from this tree: these settings, and none of the test's own."""
    # Compiled modules are kept, even if this process keeps none: a start takes a second without them.
    own = ("POINTILLIST_", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "generated")])
    return {**inherited, "PYTHONPATH": path, **(given or {})}


async def start(
    *arguments: str, module: str = "service", environ: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start `python -m service`, or another module, with these settings and no others."""
    return await asyncio.create_subprocess_exec(
        *command(*arguments, module=module),
        cwd=PROJECT,
        env=environment(environ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process, given: bytes = b"") -> Ended:
    """Write a process its input and wait for its end."""
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(given)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def run(*arguments: str, given: bytes = b"", environ: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end."""
    return await end(await start(*arguments, environ=environ), given)


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs, and close its pipes."""
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def read_until(stream: asyncio.StreamReader | None, pattern: str) -> list[str]:
    """Read lines up to the first that matches the pattern."""
    assert stream is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE):
        while line := (await stream.readline()).decode():
            lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return lines
    raise AssertionError(f"no line holds {pattern!r}: {lines}")


# -- /proc


def children(pid: int) -> set[int]:
    """The child processes of a process that have not ended."""
    found = {int(folder.name) for folder in PROC.iterdir() if folder.name.isdigit()}
    return {process for process in found if _parent(process) == pid}


def is_alive(pid: int) -> bool:
    """True while a process runs; a zombie does not."""
    return _parent(pid) is not None


def _parent(pid: int) -> int | None:
    """The parent of a process; None where the process has ended."""
    try:
        # The name comes first, in brackets, and may hold anything; the state and the parent follow.
        state, parent = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in ("Z", "X") else int(parent)
