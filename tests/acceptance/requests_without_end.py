"""Requests of callers without a token that never become whole, and small ones that become large."""

import gzip
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeAlias

from tests.acceptance.neighbours import EVENT_SERVICE, HEALTH, Street
from tests.support.raw_http2 import message, raw_connection

LARGE = 4 * 1024 * 1024  # bytes
CONNECTIONS = 3
BOMB = message(gzip.compress(bytes(LARGE - 1024)), compressed=True)

Requests: TypeAlias = Callable[[Street, AsyncExitStack, int], Awaitable[None]]


async def unfinished(here: Street, stack: AsyncExitStack, calls: int) -> None:
    """Begin requests of 4 MiB, of which 60 kB come; so many on each connection."""
    for _ in range(CONNECTIONS):
        connection = await stack.enter_async_context(raw_connection(here.address))
        await connection.open_window(0)
        for _ in range(calls):
            await connection.call(f"{EVENT_SERVICE}/Track", message(bytes(60_000), length=LARGE), ends=False)


async def headers_alone(here: Street, stack: AsyncExitStack, calls: int) -> None:
    """Send HEADERS without DATA, ten times as many."""
    for _ in range(CONNECTIONS):
        connection = await stack.enter_async_context(raw_connection(here.address))
        for _ in range(calls * 10):
            await connection.call(f"{EVENT_SERVICE}/Track", ends=False)


async def bombs(here: Street, stack: AsyncExitStack, calls: int) -> None:
    """Begin streams of small messages that become large."""
    connection = await stack.enter_async_context(raw_connection(here.address))
    for _ in range(calls):
        await connection.call(f"{EVENT_SERVICE}/BatchSend", BOMB * 4, ends=False, grpc_encoding=b"gzip")


async def long_names(here: Street, stack: AsyncExitStack, calls: int) -> None:
    """Watch names of 4 MiB, compressed and not, on both listeners."""
    for address in (here.address, here.server.health_address):
        for compressed in (True, False):
            connection = await stack.enter_async_context(raw_connection(address))
            await connection.open_window(0)
            for _ in range(calls // 2):
                if compressed:
                    await connection.call(f"{HEALTH}/Watch", BOMB, grpc_encoding=b"gzip")
                else:
                    request = message(b"\x0a" + bytes(60_000), length=LARGE)
                    await connection.call(f"{HEALTH}/Watch", request, ends=False)


WITHOUT_END: tuple[Requests, ...] = (unfinished, headers_alone, bombs, long_names)
