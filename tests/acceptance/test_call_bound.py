"""More calls at a time than the service serves: each gets an answer of ours, and is counted."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from tests.support.events import track
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server
from tests.support.servers import failed
from tests.support.sizes import sized
from tests.support.waiting import DEADLINE

CALLERS = 1_500  # below the default of POINTILLIST_MAX_CALLS, above gRPC's own bound on calls that wait
BURST = sized(4_000, 9_000)  # calls at a time
PER_CONNECTION = 100  # of them


async def answers(target: str, calls: int, per_connection: int) -> "Counter[tuple[str, str, bool]]":
    """Start so many calls at once; return the code, the reason and the presence of RetryInfo of each."""
    channels = [
        grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])
        for _ in range(calls // per_connection)
    ]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))

        async def call(number: int) -> tuple[str, str, bool]:
            stub = EventServiceStub(channels[number % len(channels)])
            try:
                await stub.Track(TrackRequest(track=track(number)), timeout=DEADLINE)
            except grpc.aio.AioRpcError as error:
                answer = failed(error)
                return answer.code.name, answer.info.reason, answer.retry_after is not None
            return "OK", "", False

        return Counter(await asyncio.gather(*map(call, range(calls))))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def test_calls_within_the_bound_are_all_answered_ok_and_a_burst_beyond_it_is_answered_and_counted(
    tmp_path: Path,
) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        assert await answers(server.address, CALLERS, PER_CONNECTION) == {("OK", "", False): CALLERS}

        burst = await answers(server.address, BURST, PER_CONNECTION)

        assert sum(burst.values()) == BURST
        assert set(burst) <= {("OK", "", False), ("UNAVAILABLE", "TOO_MANY_CALLS", True)}
        handled = {
            name: value
            for name, value in (await server.metrics()).items()
            if name.startswith("grpc_server_handled_total{") and "Track" in name
        }
        assert sum(handled.values()) == CALLERS + BURST, handled


async def test_above_the_setting_calls_are_refused_with_a_time_to_try_again(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path, max_calls="1") as server:
        assert ("UNAVAILABLE", "TOO_MANY_CALLS", True) in await answers(server.address, 50, 50)
