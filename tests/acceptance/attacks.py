"""Attacks: what a bad neighbour does, each for some seconds; nothing of an attack is left at its end.

Each is given the server's street and seconds, and returns how much it did: frames, calls or batches.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import grpc

from pointillist_destination.v1.dead_letter_service_pb2 import ListRequest
from pointillist_destination.v1.event_pb2 import Event, Track
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, BatchSendResponse
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.behaviour import Behaviour
from tests.acceptance.neighbours import BAD, BAD_ONES, DEAD_LETTER_SERVICE, EVENT_SERVICE, HEALTH, Street
from tests.acceptance.requests_without_end import WITHOUT_END
from tests.support.events import track
from tests.support.raw_http2 import (
    CANCEL,
    MAX_WINDOW,
    RST_STREAM,
    Answer,
    data_frames,
    frame,
    headers_frame,
    message,
    raw_connection,
    request_headers,
)
from tests.support.sizes import sized
from tests.support.waiting import until

Attack: TypeAlias = Callable[[Street, float], Awaitable[int]]

INTERVAL = 0.5  # seconds between two bad paths to each port
BAD_PATH = f"{EVENT_SERVICE}/Tr".encode() + b"\xff\xfe"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
AT_ONCE = 90  # calls of a flood under way
STREAMS = 40  # of large batches
INVALID = message(b"\x12\x00" * sized(2_000, 10_000))
"""A batch of empty events: each is refused with its details."""
UNREAD_BATCH = message(b"\x12\x00" * 5_000)
LARGE_EVENT = 31_000  # bytes
IN_LARGE_BATCH = 125  # such events: almost 4 MiB
WATCHERS_OF_ADDRESS = 20  # on each listener
BURIED = 12  # dead letters, more than a page holds
METADATA = (("authorization", f"Bearer {BAD}"),)


async def bad_paths(here: Street, seconds: float) -> int:
    """Send frames that end a gRPC server, to both ports in turn."""
    frames = 0
    for _ in range(round(seconds / INTERVAL)):
        for address in (here.address, here.server.health_address):
            with suppress(ConnectionRefusedError):  # it is being made again
                async with raw_connection(address) as connection:
                    await connection.send(headers_frame(1, request_headers(BAD_PATH)))
                    frames += 1
                    await asyncio.sleep(INTERVAL / 2)
    return frames


async def flood(here: Street, seconds: float, *, path: str, resets: bool = False) -> int:
    """Make as many calls on one connection as the server takes, with a wrong token."""
    calls = 0
    ends_at = time.monotonic() + seconds
    reset = CANCEL.to_bytes(4, "big")
    while time.monotonic() < ends_at:
        async with raw_connection(here.address) as connection:  # another where the server has closed one
            await connection.open_window(0)
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


FLOODS: Mapping[str, Attack] = MappingProxyType(
    {
        "rapid reset": partial(flood, path=f"{EVENT_SERVICE}/Track", resets=True),
        "wrong tokens": partial(flood, path=f"{EVENT_SERVICE}/Track"),
        "unknown methods": partial(flood, path=f"{EVENT_SERVICE}/NoSuchMethod"),
        "reflection": partial(flood, path=REFLECTION),
    }
)


def duplicates() -> bytes:
    """A batch of one event, over and over; small enough for a stream's first window."""
    one = Event(track=Track(user_id="u", event="E", message_id="the-same"))
    return message(BatchSendRequest(events=[one] * 2_000).SerializeToString())


async def judged_batches(here: Street, seconds: float, *, batch: bytes, tokens: list[str]) -> int:
    """Send one large batch after the other on many streams, each when the one before it is answered."""
    ends_at = time.monotonic() + seconds

    async def send(token: str) -> int:
        async with raw_connection(here.address, window=MAX_WINDOW) as connection:
            await connection.open_window(0)
            stream = await connection.call(f"{EVENT_SERVICE}/BatchSend", batch, token=token, ends=False)
            answer = connection.answers[stream]
            while time.monotonic() < ends_at and not answer.is_ended:
                before = answer.messages
                await until(lambda: answer.messages > before or answer.is_ended or time.monotonic() > ends_at)  # noqa: B023
                await connection.send(data_frames(stream, batch))
            assert not answer.is_ended, answer.headers
            return answer.messages

    return sum(await asyncio.gather(*(send(token) for token in tokens)))


JUDGED_BATCHES: Mapping[str, Attack] = MappingProxyType(
    {
        f"{kind}{of}": partial(judged_batches, batch=batch, tokens=tokens)
        for kind, batch in (("invalid", INVALID), ("duplicate", duplicates()))
        for of, tokens in (("", [BAD] * STREAMS), (" of 40 callers", BAD_ONES))
    }
)


def large_batch(name: str) -> bytes:
    """A batch of almost 4 MiB, of events of its own."""
    request = BatchSendRequest(sequence=1)
    for index in range(IN_LARGE_BATCH):
        one = track(index, message_id=f"large-{name}-{index}", properties={"text": "x" * LARGE_EVENT})
        request.events.append(Event(track=one))
    return request.SerializeToString()


async def large_batches(here: Street, seconds: float, *, streams: int) -> int:
    """Send a batch of almost 4 MiB on each of many streams at once, and again; returns the events accepted."""
    channels = [
        grpc.aio.insecure_channel(here.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)
    ]
    ends_at = time.monotonic() + seconds

    async def send(number: int, turn: int) -> int:
        batch_send: grpc.aio.StreamStreamMultiCallable[bytes, BatchSendResponse]
        batch_send = channels[number % len(channels)].stream_stream(
            f"{EVENT_SERVICE}/BatchSend", response_deserializer=BatchSendResponse.FromString
        )
        call = batch_send(metadata=METADATA)
        await call.write(large_batch(f"{id(here)}-{turn}-{number}"))
        answer = await call.read()
        await call.done_writing()
        assert isinstance(answer, BatchSendResponse), await call.details()
        return answer.accepted

    accepted = turn = 0
    try:
        while not turn or time.monotonic() < ends_at:
            accepted += sum(await asyncio.gather(*(send(number, turn) for number in range(streams))))
            turn += 1
    finally:
        for channel in channels:
            await channel.close()
    return accepted


async def unread_streams(here: Street, seconds: float, *, streams: int) -> int:
    """Send batches on streams whose answers are never read."""
    async with AsyncExitStack() as stack:
        for _ in range(streams):
            connection = await stack.enter_async_context(raw_connection(here.address, window=0))
            await connection.call(f"{EVENT_SERVICE}/BatchSend", UNREAD_BATCH * 5, token=BAD, ends=False)
        await asyncio.sleep(seconds)
    return streams


async def bury_some(here: Street) -> None:
    """Have more dead letters than a page holds."""
    here.sandbox.behaviour = Behaviour(answers={"400": 1.0})
    async with grpc.aio.insecure_channel(here.address) as channel:
        events = [Event(track=track(n, properties={"text": "x" * 25_000})) for n in range(BURIED)]
        call = EventServiceStub(channel).BatchSend(iter([BatchSendRequest(events=events)]), metadata=METADATA)
        async for _ in call:
            pass
    await here.server.until_metrics(lambda metrics: metrics["dead_letters"] == BURIED)
    here.sandbox.behaviour = Behaviour()


async def unread_pages(here: Street, seconds: float, *, calls: int) -> int:
    """List dead letters, and never read the answers."""
    async with raw_connection(here.address, window=0) as connection:
        for _ in range(calls):
            await connection.call(f"{DEAD_LETTER_SERVICE}/List", message(ListRequest().SerializeToString()), token=BAD)
        await asyncio.sleep(seconds)
    return calls


async def watch_without_reading(here: Street, stack: AsyncExitStack, addresses: int) -> None:
    """Watch health on both ports, from each of some addresses as often as is allowed, and never read."""
    for number in range(addresses):
        for address in (here.address, here.server.health_address):
            source = f"127.0.1.{number + 1}"
            connection = await stack.enter_async_context(raw_connection(address, window=0, source=source))
            for _ in range(WATCHERS_OF_ADDRESS):
                await connection.call(f"{HEALTH}/Watch", message(b""))


async def stuck_watchers(here: Street, seconds: float, *, addresses: int) -> int:
    """Watch without reading for some time."""
    async with AsyncExitStack() as stack:
        await watch_without_reading(here, stack, addresses)
        await asyncio.sleep(seconds)
    return 2 * addresses * WATCHERS_OF_ADDRESS


async def without_end(here: Street, seconds: float, *, calls: int, watchers: int) -> int:
    """Send requests that never become whole, and small ones that become large, without a token."""
    async with AsyncExitStack() as stack:
        for one in WITHOUT_END:
            await one(here, stack, watchers if one.__name__ == "long_names" else calls)
            await asyncio.sleep(seconds / len(WITHOUT_END))
    return calls


ALL: Mapping[str, Attack] = MappingProxyType(
    {
        "bad paths": bad_paths,
        "requests without end": partial(without_end, calls=100, watchers=200),
        **FLOODS,
        **{f"batches: {kind}": attack for kind, attack in JUDGED_BATCHES.items()},
        "large batches": partial(large_batches, streams=50),
        "unread streams": partial(unread_streams, streams=45),
        "unread pages": partial(unread_pages, calls=200),
        "stuck watchers": partial(stuck_watchers, addresses=45),
    }
)
"""Every kind, as the soak has them in turn."""
