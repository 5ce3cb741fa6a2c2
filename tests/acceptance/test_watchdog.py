"""A process whose liveness fails, or whose event loop is stuck, ends by itself, so that its supervisor restarts it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.processes import environment
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import settings_for
from tests.support.waiting import DEADLINE

LIMIT = 2.0  # seconds

# `serve`, with a shorter limit, and a file that makes its liveness fail, or its loop get stuck.
PROGRAM = f"""
import sys, time
from pathlib import Path
from service import app
from service.telemetry import watchdog
watchdog.LIMIT, watchdog.INTERVAL = {LIMIT}, 0.1
flag = Path(sys.argv[1])
def silent(self):
    if not flag.exists():
        return None
    if flag.read_text() == "stuck":
        time.sleep(1_000)
    return "made to fail"
app.App._silent = silent
sys.argv = ["pointillist-destination", "serve"]
from service.cli.main import main
main()
"""


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """Run the program until it serves; gives it, and the file that makes its liveness fail."""
    flag = folder / "fail"
    async with running_sandbox() as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(flag)),
            cwd=PROJECT,
            env=environment(settings_for(folder / "outbox.db", sandbox)),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            while b'"serving"' not in await process.stderr.readline():
                pass
            yield process, flag
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.mark.parametrize("fault", ["liveness", "stuck"])
async def test_a_process_that_only_a_restart_helps_ends_and_says_where_it_was(tmp_path: Path, fault: str) -> None:
    async with running(tmp_path) as (process, flag):
        # given, once, that it has lived for longer than the limit
        if fault == "liveness":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), LIMIT + 0.5)

        # when
        flag.write_text(fault)

        # then
        assert process.stderr is not None
        async with asyncio.timeout(DEADLINE):
            said = await process.stderr.read()
            assert await process.wait() == 1
    assert b"Timeout (0:00:02)!" in said
    assert (b"made to fail" in said) == (fault == "liveness")
