"""Watchers of health that never read: every change reaches the others, and the process still ends."""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Behaviour
from tests.acceptance.attacks import WATCHERS_OF_ADDRESS, watch_without_reading
from tests.acceptance.neighbours import HEALTH, HONEST, street
from tests.support.events import track
from tests.support.raw_http2 import message, raw_connection
from tests.support.sizes import sized

ADDRESSES = sized(10, 45)  # of loopback, from which they come
UNIMPLEMENTED = 12
NOT_SERVING, SERVING = 2, 1
CHANGES = 2
CAPACITY = 20  # events in the outbox
LATEST = 1.0  # seconds until an honest watcher hears of a change


async def fill(address: str) -> None:
    """Send events until the outbox is full."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = EventServiceStub(channel)
        with suppress(grpc.aio.AioRpcError):
            for number in range(2 * CAPACITY):
                await stub.Track(TrackRequest(track=track(number)), metadata=(("authorization", f"Bearer {HONEST}"),))


async def test_each_change_reaches_an_honest_watcher_beside_watchers_that_never_read(tmp_path: Path) -> None:
    async with street(tmp_path, outbox_max_events=str(CAPACITY)) as here, AsyncExitStack() as stack:
        changes: list[tuple[float, int]] = []
        ends: list[float] = []

        async def attack() -> None:
            await watch_without_reading(here, stack, ADDRESSES)
            for _ in range(CHANGES // 2):
                here.sandbox.behaviour = Behaviour({"503": 1})
                changes.append((time.time(), NOT_SERVING))
                await fill(here.address)
                await here.server.until_metrics(lambda metrics: metrics["ready"] == 0)
                ends.append(time.time())
                await asyncio.sleep(LATEST)
                changes.append((time.time(), SERVING))
                here.sandbox.behaviour = Behaviour()
                await here.server.until_metrics(lambda metrics: metrics["ready"] == 1)
                ends.append(time.time())
                await asyncio.sleep(LATEST)

        # when
        await here.beside(attack, "health")
        await here.stop()

        # then
        here.show()
        heard = [(at, status) for at, _, status in here.seen["health"].changes]
        for (begin, status), end in zip(changes, ends, strict=True):
            assert any(seen == status and begin <= when <= end + LATEST for when, seen in heard), (status, heard)
        assert here.seen["health"].missed_in_a_row == 0
        assert here.stopped_in < 3


async def test_more_watchers_than_an_address_may_have_are_told_to_go_on_without(tmp_path: Path) -> None:
    async with street(tmp_path) as here, raw_connection(here.address) as connection:
        # given
        watching = [await connection.call(f"{HEALTH}/Watch", message(b"")) for _ in range(WATCHERS_OF_ADDRESS)]

        # when
        beyond = await connection.call(f"{HEALTH}/Watch", message(b""))
        answer = await connection.ended(beyond)

        # then
        assert answer.code == UNIMPLEMENTED
        assert not any(connection.answers[stream].is_ended for stream in watching)
