"""`send` holds no more of a big file than of a small one."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

MEBIBYTE = 1024  # kB, in which Linux counts memory
MAX_GROWTH = 12 * MEBIBYTE  # kB between two runs, for what is under way and the allocator's moods

# Runs a command, and says the most memory that it had.
MEASURED = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "service", *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def file_of(path: Path, count: int) -> Path:
    """Lines of four kilobytes; their integrations object keeps the server from doing anything with them."""
    message = {"type": "track", "userId": "u", "event": "E", "integrations": {"All": False}}
    line = json.dumps(message | {"properties": {"text": "x" * 4_000}}).encode() + b"\n"
    with path.open("wb") as file:
        file.writelines(line for _ in range(count))
    return path


async def peak(file: Path, target: str) -> int:
    """The most memory that sending a file took, in kB."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURED, "send", str(file), "--target", target),
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "generated")])},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        out, _ = await process.communicate()
    return int(out)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of a process's memory is Linux's")
@pytest.mark.parametrize("count", [8_000, pytest.param(75_000, marks=pytest.mark.long)])
async def test_a_file_of_any_size_is_sent_in_the_memory_of_a_small_one(tmp_path: Path, count: int) -> None:
    # given a file that is several times larger than what may be added
    small, big = file_of(tmp_path / "small.jsonl", 800), file_of(tmp_path / "big.jsonl", count)
    assert big.stat().st_size > 2 * MAX_GROWTH * 1024

    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        # when
        before = await peak(small, server.address)
        after = await peak(big, server.address)

    # then
    assert after - before < MAX_GROWTH
