"""Requests that never become whole, and small ones that become large: memory stays bounded."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from tests.acceptance.neighbours import BAD, EVENT_SERVICE, HEALTH, Street, street
from tests.support.raw_http2 import RawConnection, message, raw_connection
from tests.support.sizes import sized

MEBIBYTE = 1024 * 1024
LARGE = 4 * MEBIBYTE
MAX_PEAK = 200  # MiB
CONNECTIONS = 3
CALLS = sized(30, 100)  # on each connection
WATCHERS = sized(60, 200)
SETTLING = sized(1.0, 30.0)  # seconds for which the attack goes on
BOMB = message(gzip.compress(bytes(LARGE - 1024)), compressed=True)


async def unfinished(here: Street, stack: AsyncExitStack) -> None:
    """Requests of 4 MiB but for the last byte, without a token."""
    for _ in range(CONNECTIONS):
        connection = await stack.enter_async_context(raw_connection(here.address))
        await connection.open_window(0)
        for _ in range(CALLS):
            await start(connection, f"{EVENT_SERVICE}/Track", message(bytes(60_000), length=LARGE))


async def headers_alone(here: Street, stack: AsyncExitStack) -> None:
    """HEADERS without DATA, without a token."""
    for _ in range(CONNECTIONS):
        connection = await stack.enter_async_context(raw_connection(here.address))
        for _ in range(CALLS * 10):
            await connection.call(f"{EVENT_SERVICE}/Track", ends=False)


async def bombs(here: Street, stack: AsyncExitStack) -> None:
    """Streams of small messages that become large, without a token."""
    connection = await stack.enter_async_context(raw_connection(here.address))
    for _ in range(CALLS):
        await connection.call(f"{EVENT_SERVICE}/BatchSend", BOMB * 4, ends=False, grpc_encoding=b"gzip")


async def long_names(here: Street, stack: AsyncExitStack) -> None:
    """Watches of names of 4 MiB, compressed and not, on both listeners."""
    for address in (here.address, here.server.health_address):
        for compressed in (True, False):
            connection = await stack.enter_async_context(raw_connection(address))
            await connection.open_window(0)
            for _ in range(WATCHERS // 2):
                if compressed:
                    await connection.call(f"{HEALTH}/Watch", BOMB, grpc_encoding=b"gzip")
                else:
                    await start(connection, f"{HEALTH}/Watch", message(b"\x0a" + bytes(60_000), length=LARGE))


async def start(connection: RawConnection, path: str, content: bytes) -> int:
    """Begin a call that never ends."""
    return await connection.call(path, content, ends=False)


ATTACKS: list[Callable[[Street, AsyncExitStack], Awaitable[None]]] = [unfinished, headers_alone, bombs, long_names]


async def test_what_callers_without_a_token_send_fills_no_memory_and_holds_up_nobody(tmp_path: Path) -> None:
    async with street(tmp_path) as here, AsyncExitStack() as stack:

        async def attack() -> None:
            for one in ATTACKS:
                await one(here, stack)
                await asyncio.sleep(SETTLING / len(ATTACKS))

        # when
        await here.beside(attack)
        await here.until_delivered()
        await here.stop()

        # then
        here.show()
        assert here.peak < MAX_PEAK
        assert here.stopped_in < 3.5
        for seen in here.seen.values():
            assert seen.ok_share == 1
            assert seen.missed_in_a_row == 0


@pytest.mark.parametrize("method", ["Track", "Identify"])
async def test_a_call_that_ends_without_a_whole_message_is_answered_and_counted(tmp_path: Path, method: str) -> None:
    async with street(tmp_path) as here, raw_connection(here.address) as connection:
        # when
        path = f"{EVENT_SERVICE}/{method}"
        nothing = await connection.call(path, token=BAD)
        cut = await connection.call(path, message(b"abc", length=10), token=BAD)
        large = await connection.call(path, message(bytes(60_000), length=LARGE + 1), token=BAD)
        answers = [await connection.ended(stream) for stream in (nothing, cut, large)]

        # then
        metrics = await here.server.metrics()
        handled = {name: value for name, value in metrics.items() if "handled_total" in name and f",{method}," in name}
        invalid, exhausted = grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert [answer.code for answer in answers[:2]] == [invalid] * 2
        assert all("not a" in answer.status.message for answer in answers[:2])
        assert answers[2].code in {invalid, exhausted}  # gRPC's own answer may be faster than ours
        assert {name: value for name, value in handled.items() if value} == {
            f"grpc_server_handled_total{{INVALID_ARGUMENT,{method},pointillist_destination.v1.EventService,unary}}": 3
        }
