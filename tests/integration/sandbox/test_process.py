"""The sandbox as a process: what it prints, and how it ends."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, ServerDisconnectedError

from tests.support.paths import PROJECT
from tests.support.sandboxes import record
from tests.support.waiting import DEADLINE


@asynccontextmanager
async def serving(listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run `serve_sandbox` in a process of its own; gives the process and the URL that it says."""
    call = (
        "import asyncio; from service.sandbox.server import *; "
        f"asyncio.run(serve_sandbox({listen!r}, 'token', Behaviour()))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        call,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE):
            said = (await process.stderr.readline()).decode()
        match = re.fullmatch(r"The sandbox takes records at (http://\S+/event)\n", said)
        assert match is not None, said
        yield process, match[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_prints_each_record_as_a_line_until_a_signal_ends_it(number: signal.Signals) -> None:
    async with serving() as (process, url), ClientSession(headers={"apiToken": "token"}) as client:
        # given
        assert process.stdout is not None
        await client.post(url, json=record(1))
        await client.post(url, json={})
        await client.post(url, json=record(2))

        # when
        process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()

        # then
        assert [json.loads(line) for line in out.splitlines()] == [record(1), record(2)]
        assert (process.returncode, err) == (0, b"")


async def test_the_process_listens_on_ipv6_too() -> None:
    async with serving("[::1]:0") as (_, url), ClientSession(headers={"apiToken": "token"}) as client:
        response = await client.post(url, json=record())

        assert url.startswith("http://[::1]:")
        assert response.status == 200


async def test_the_process_ends_quietly_when_nobody_reads_its_output_any_more() -> None:
    # given
    read_end, write_end = os.pipe()
    call = (
        "import asyncio; from service.sandbox.server import *; "
        "asyncio.run(serve_sandbox('127.0.0.1:0', None, Behaviour()))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", call, cwd=PROJECT, stdout=write_end, stderr=asyncio.subprocess.PIPE
    )
    os.close(write_end)
    assert process.stderr is not None
    url = (await process.stderr.readline()).decode().split()[-1]

    # when
    os.close(read_end)
    async with ClientSession() as client:
        try:
            response = await client.post(url, json=record())
            assert response.status == 200
        except ServerDisconnectedError:
            pass  # it may stop before the answer is out

    # then
    async with asyncio.timeout(DEADLINE):
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
