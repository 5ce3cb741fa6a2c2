"""A process that runs out of descriptors says so, and goes on once it has some again."""

import resource
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from tests.acceptance.attacks import METADATA
from tests.acceptance.neighbours import street
from tests.support.events import track
from tests.support.raw_http2 import raw_connection
from tests.support.waiting import DEADLINE, until

LIMIT = 120


async def test_idle_connections_that_use_up_the_descriptors_are_told_of_and_others_serve_again(tmp_path: Path) -> None:
    async with street(tmp_path) as here:
        # given a process with few descriptors
        resource.prlimit(here.server.process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))

        # when
        async with AsyncExitStack() as stack:
            for _ in range(LIMIT):
                await stack.enter_async_context(raw_connection(here.address, keeps=False))
            await until(lambda: any("descriptors are almost used up" in line for line in here.server.log))

        # then, once they are gone
        await until(lambda: any("descriptors are few again" in line for line in here.server.log))
        async with grpc.aio.insecure_channel(here.address) as channel:
            await EventServiceStub(channel).Track(TrackRequest(track=track()), metadata=METADATA, timeout=DEADLINE)
        assert (await here.server.metrics())["descriptor_usage_ratio"] < 0.8
