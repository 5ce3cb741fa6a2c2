"""A sandbox in this process, with its client, a good record, and plain sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientResponse, ClientSession

from service.sandbox.server import Behaviour, Sandbox
from tests.support.waiting import DEADLINE, INTERVAL

TOKEN = "acceptance-token"
KEEP = 1_000_000  # records; more than any test sends


@asynccontextmanager
async def running_sandbox(behaviour: Behaviour | None = None, seed: int | None = None) -> AsyncIterator[Sandbox]:
    """Run a sandbox on a free port; it accepts TOKEN only."""
    sandbox = Sandbox(api_token=TOKEN, behaviour=behaviour, keep=KEEP, seed=seed)
    await sandbox.start("127.0.0.1", 0)
    try:
        yield sandbox
    finally:
        await sandbox.stop()


@asynccontextmanager
async def running(sandbox: Sandbox) -> AsyncIterator[ClientSession]:
    """Run a sandbox on a free port; yields a client whose paths are relative to it."""
    await sandbox.start("127.0.0.1", 0)
    try:
        async with ClientSession(sandbox.url.removesuffix("event")) as client:
            yield client
    finally:
        await sandbox.stop()


async def until_taken(sandbox: Sandbox, count: int) -> set[str]:
    """Wait until the sandbox has records of that many events; return their message ids."""
    async with asyncio.timeout(DEADLINE):
        while len(ids := {record.message_id for record in sandbox.records}) < count:  # noqa: ASYNC110  it sets no event
            await asyncio.sleep(INTERVAL)
    return ids


def record(number: int = 1) -> dict[str, Any]:
    """A good record with this number in its user id."""
    return {
        "eventSource": "Segment",
        "eventType": "Order Completed",
        "eventTime": "2026-02-23T22:28:55.111Z",
        "actors": {"Customer": {"userId": f"u-{number}"}},
        "labels": {"currency": "USD"},
        "numbers": {"revenue": "25.5"},
    }


async def refusal(response: ClientResponse) -> tuple[int, str]:
    """Status and reason of a response that is no 2xx."""
    body = await response.json()
    assert body["status"] == response.status
    return response.status, body["reason"]


async def raw_answer(sandbox: Sandbox, sent: bytes) -> bytes:
    """Send bytes, and read until the sandbox closes the connection."""
    reader, writer = await asyncio.open_connection(*sandbox.address)
    writer.write(sent)
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def raw_post(body: bytes) -> bytes:
    """The bytes of a POST request."""
    return b"POST /event HTTP/1.1\r\nHost: sandbox\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
