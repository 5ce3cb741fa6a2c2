"""Streams of large batches keep the server busy; small calls of others are answered all the same."""

import asyncio
import time
from pathlib import Path

import pytest

from pointillist_destination.v1.event_pb2 import Event, Track
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest
from tests.acceptance.neighbours import BAD, BAD_ONES, EVENT_SERVICE, Street, street
from tests.support.raw_http2 import MAX_WINDOW, data_frames, message, raw_connection
from tests.support.sizes import IS_FULL, sized
from tests.support.waiting import until

STREAMS = 40
SECONDS = sized(1.5, 40.0)
EVENTS = 10_000  # in each batch
MAX_P99 = 200.0  # ms
INVALID = message(b"\x12\x00" * EVENTS)
"""A batch of empty events: each is refused with its details."""


def duplicates() -> bytes:
    """A batch of one event, over and over; small enough for a stream's first window."""
    one = Event(track=Track(user_id="u", event="E", message_id="the-same"))
    return message(BatchSendRequest(events=[one] * 2_000).SerializeToString())


async def send(here: Street, token: str, batches: list[int], batch: bytes, ends_at: float) -> None:
    """Send one batch after the other on a stream, each when the one before it is answered."""
    async with raw_connection(here.address, window=MAX_WINDOW) as connection:
        await connection.open_window(0)
        stream = await connection.call(f"{EVENT_SERVICE}/BatchSend", batch, token=token, ends=False)
        answer = connection.answers[stream]
        while time.monotonic() < ends_at and not answer.is_ended:
            before = answer.messages
            await until(lambda: answer.messages > before or answer.is_ended or time.monotonic() > ends_at)  # noqa: B023
            batches.append(answer.messages - before)
            await connection.send(data_frames(stream, batch))
        assert not answer.is_ended, answer.headers


@pytest.mark.parametrize("kind", ["invalid", "duplicate", "invalid of 40 callers", "duplicate of 40 callers"])
async def test_small_calls_are_answered_beside_streams_of_large_batches(tmp_path: Path, kind: str) -> None:
    async with street(tmp_path) as here:
        batch = INVALID if kind.startswith("invalid") else duplicates()
        tokens = BAD_ONES if "callers" in kind else [BAD] * STREAMS
        batches: list[int] = []

        async def attack() -> None:
            ends_at = time.monotonic() + SECONDS
            await asyncio.gather(*(send(here, token, batches, batch, ends_at) for token in tokens))

        # when
        await here.beside(attack)
        await here.until_delivered()
        await here.stop()

        # then
        print(f"{sum(batches) / SECONDS:.1f} batches/s")  # noqa: T201
        here.show()
        assert sum(batches) > 0
        for kind_of_caller, seen in here.seen.items():
            assert seen.ok_share == 1
            assert seen.missed_in_a_row == 0
            if IS_FULL and kind_of_caller != "health":
                assert seen.percentile(0.99) < MAX_P99
