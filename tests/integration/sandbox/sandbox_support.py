"""What the sandbox's tests share: a good record, a running sandbox with its client, and plain sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientResponse, ClientSession

from service.sandbox.server import Sandbox

DEADLINE = 10.0  # seconds for anything that has to happen at all


def record(number: int = 1) -> dict[str, Any]:
    """A good record, told from others by its number."""
    return {
        "eventSource": "Segment",
        "eventType": "Order Completed",
        "eventTime": "2026-02-23T22:28:55.111Z",
        "actors": {"Customer": {"userId": f"u-{number}"}},
        "labels": {"currency": "USD"},
        "numbers": {"revenue": "25.5"},
    }


@asynccontextmanager
async def running(sandbox: Sandbox) -> AsyncIterator[ClientSession]:
    """Start a sandbox on a free port; gives a client whose paths are relative to it."""
    await sandbox.start("127.0.0.1", 0)
    try:
        async with ClientSession(sandbox.url.removesuffix("event")) as client:
            yield client
    finally:
        await sandbox.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.002)


async def refusal(response: ClientResponse) -> tuple[int, str]:
    """Status and reason of an answer that is no 2xx."""
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
    """A POST as it stands on the wire."""
    return b"POST /event HTTP/1.1\r\nHost: sandbox\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
