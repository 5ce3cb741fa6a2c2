"""Streams that send and never read: honest callers go on, the process still ends, and memory is bounded."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.acceptance.attacks import UNREAD_BATCH, unread_streams
from tests.acceptance.neighbours import BAD, EVENT_SERVICE, street
from tests.support.raw_http2 import MAX_WINDOW, raw_connection
from tests.support.sizes import IS_FULL, sized

SECONDS = sized(1.5, 40.0)
MAX_P99 = 500.0  # ms
GRACE = 2.0  # seconds, as the street sets it


@pytest.mark.parametrize("streams", [45, pytest.param(450, marks=pytest.mark.long)])
async def test_streams_that_never_read_hold_up_nobody(tmp_path: Path, streams: int) -> None:
    async with street(tmp_path) as here:
        # when
        await here.beside(lambda: unread_streams(here, SECONDS, streams=streams))
        await here.until_delivered()
        await here.stop()

        # then
        here.show()
        assert here.seen["track"].ok_share == here.seen["batch"].ok_share == 1
        assert here.seen["health"].missed_in_a_row <= 1  # while all of them connect at once
        if IS_FULL:
            assert here.seen["batch"].percentile(0.99) < MAX_P99
            assert here.stopped_in < 3


async def test_the_process_ends_behind_a_peer_that_does_not_read_its_connection(tmp_path: Path) -> None:
    async with street(tmp_path) as here, AsyncExitStack() as stack:
        # given answers that fill the buffers of a socket
        for _ in range(3):
            raw = raw_connection(here.address, window=MAX_WINDOW, reads=False)
            connection = await stack.enter_async_context(raw)
            await connection.open_window(0)
            for _ in range(10):
                await connection.call(f"{EVENT_SERVICE}/BatchSend", UNREAD_BATCH, token=BAD, ends=False)
        await here.server.until_metrics(lambda metrics: metrics["events_total{rejected}"] >= 10_000)

        # when
        await here.stop()

        # then
        assert here.stopped_in < GRACE + 3
