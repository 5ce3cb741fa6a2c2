"""Floods of calls on one connection, without a right token: honest callers are answered beside each."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.acceptance.neighbours import EVENT_SERVICE, street
from tests.support.raw_http2 import (
    CANCEL,
    RST_STREAM,
    Answer,
    RawConnection,
    data_frames,
    frame,
    headers_frame,
    message,
    raw_connection,
    request_headers,
)
from tests.support.sizes import IS_FULL, sized
from tests.support.waiting import until

SECONDS = sized(1.0, 10.0)
AT_ONCE = 90  # calls under way
MAX_P50, MAX_P99 = 50.0, 500.0  # ms
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
FLOODS = {
    "rapid reset": (f"{EVENT_SERVICE}/Track", True),
    "wrong tokens": (f"{EVENT_SERVICE}/Track", False),
    "unknown methods": (f"{EVENT_SERVICE}/NoSuchMethod", False),
    "reflection": (REFLECTION, False),
}


@asynccontextmanager
async def flooding(address: str) -> AsyncIterator[RawConnection]:
    async with raw_connection(address) as connection:
        await connection.open_window(0)
        yield connection


async def flood(address: str, path: str, *, resets: bool) -> int:
    """Make as many calls as the server takes; returns their number."""
    calls = 0
    ends_at = time.monotonic() + SECONDS
    reset = CANCEL.to_bytes(4, "big")
    while time.monotonic() < ends_at:
        async with flooding(address) as connection:  # another where the server has closed one
            while time.monotonic() < ends_at and not connection.is_closed:
                streams = [connection.next_stream() for _ in range(AT_ONCE)]
                frames = []
                for stream in streams:
                    connection.answers[stream] = Answer()
                    frames.append(headers_frame(stream, request_headers(path, "a-wrong-token")))
                    ending = (
                        frame(RST_STREAM, 0, stream, reset) if resets else data_frames(stream, message(b""), ends=True)
                    )
                    frames.append(ending)
                await connection.send(*frames)
                calls += len(streams)
                if not resets:
                    await until(
                        lambda: (
                            connection.is_closed
                            or all(connection.answers[stream].is_ended for stream in streams)  # noqa: B023
                            or time.monotonic() > ends_at
                        )
                    )
                connection.answers.clear()
    return calls


@pytest.mark.parametrize("kind", FLOODS)
async def test_honest_callers_are_answered_beside_a_flood(tmp_path: Path, kind: str) -> None:
    path, resets = FLOODS[kind]
    async with street(tmp_path) as here:
        calls = 0

        async def attack() -> None:
            nonlocal calls
            calls = await flood(here.address, path, resets=resets)

        # when
        await here.beside(attack)
        await here.until_delivered()
        await here.stop()

        # then
        print(f"{kind}: {calls / SECONDS:.0f} calls/s")  # noqa: T201
        here.show()
        assert calls > 0
        assert here.seen["track"].ok_share == here.seen["batch"].ok_share == 1
        if IS_FULL:
            for caller in ("track", "batch"):
                assert here.seen[caller].percentile(0.5) < MAX_P50
                assert here.seen[caller].percentile(0.99) < MAX_P99
