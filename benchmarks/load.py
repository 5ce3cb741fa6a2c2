"""The gRPC load generator in Python: `python -m benchmarks.load`. It sends prepared bytes and parses next to nothing.

    {"do": "unary", "port", "run", "count", "callers"}      flat out
    {"do": "stream", "port", "run", "batches", "size", "ahead"}     flat out, `ahead` batches unanswered at a time
    {"do": "paced", "port", "run", "at": [seconds]}         one call at each of these times after the start

Each may have an "access": [the file of the authority that signed the server's certificate, the caller's token].
Each is answered with {"started": monotonic time, "seconds": float, "latencies": [seconds]}; "paced" also with
{"sent": {message_id: monotonic time}}. A call that fails ends the process: a figure with failures in it is none.
The bytes are made before the clock starts.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import grpc
import uvloop

from benchmarks.control import serve_commands
from benchmarks.events import batches, track_requests
from pointillist_destination.v1 import event_service_pb2
from service.server.event_service import SERVICE_NAME

Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
Stream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"

TRACK = f"/{SERVICE_NAME}/Track"
BATCH_SEND = f"/{SERVICE_NAME}/BatchSend"
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
CALL_TIME = 60.0  # seconds after which a call fails


class Access(NamedTuple):
    """What a caller needs where a server speaks TLS and asks for a token."""

    authority: str
    """A PEM file."""
    token: str


async def unary(channel: grpc.aio.Channel, run: str, count: int, callers: int, access: Access | None) -> dict[str, Any]:
    call: Unary = channel.unary_unary(TRACK)
    requests = iter([request for _, request in track_requests(run, count)])
    latencies: list[float] = []

    async def caller() -> None:
        for request in requests:
            sent_at = time.monotonic()
            await call(request, timeout=CALL_TIME, metadata=metadata_of(access))
            latencies.append(time.monotonic() - sent_at)

    started = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return {"started": started, "seconds": time.monotonic() - started, "latencies": latencies}


async def stream(
    channel: grpc.aio.Channel, run: str, count: int, *, size: int, ahead: int, access: Access | None
) -> dict[str, Any]:
    requests = list(batches(run, count, size))
    method: Stream = channel.stream_stream(BATCH_SEND)
    call = method(timeout=CALL_TIME, metadata=metadata_of(access))
    room = asyncio.Semaphore(ahead)
    sent_at: list[float] = []
    latencies: list[float] = []

    async def write() -> None:
        for request in requests:
            await room.acquire()
            sent_at.append(time.monotonic())
            await call.write(request)
        await call.done_writing()

    started = time.monotonic()
    writing = asyncio.create_task(write())
    accepted = 0
    for index in range(count):
        answer = await call.read()
        latencies.append(time.monotonic() - sent_at[index])
        room.release()
        assert isinstance(answer, bytes)  # it is EOF where the server ends the stream early
        accepted += event_service_pb2.BatchSendResponse.FromString(answer).accepted
    seconds = time.monotonic() - started
    await writing
    if accepted != count * size:
        raise RuntimeError(f"{accepted} of {count * size} events were accepted")
    return {"started": started, "seconds": seconds, "latencies": latencies}


async def paced(channel: grpc.aio.Channel, run: str, at: Sequence[float]) -> dict[str, Any]:
    call: Unary = channel.unary_unary(TRACK)
    sent: dict[str, float] = {}
    latencies: list[float] = []

    async def send(message_id: str, request: bytes) -> None:
        sent[message_id] = sent_at = time.monotonic()
        await call(request, timeout=CALL_TIME)
        latencies.append(time.monotonic() - sent_at)

    requests = list(track_requests(run, len(at)))
    await channel.channel_ready()
    started = time.monotonic()
    async with asyncio.TaskGroup() as calls:
        for due, (message_id, request) in zip(at, requests, strict=True):
            await asyncio.sleep(max(0.0, started + due - time.monotonic()))
            calls.create_task(send(message_id, request))
    return {"started": started, "seconds": time.monotonic() - started, "latencies": latencies, "sent": sent}


def metadata_of(access: Access | None) -> tuple[tuple[str, str], ...]:
    return () if access is None else (("authorization", f"Bearer {access.token}"),)


def channel_to(port: int, access: Access | None) -> grpc.aio.Channel:
    address = f"127.0.0.1:{port}"
    if access is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(Path(access.authority).read_bytes())
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


async def handle(command: dict[str, Any]) -> dict[str, Any]:
    access = Access(*command["access"]) if command.get("access") else None
    async with channel_to(command["port"], access) as channel:
        await channel.channel_ready()
        run = command["run"]
        match command["do"]:
            case "unary":
                return await unary(channel, run, command["count"], command["callers"], access)
            case "stream":
                size, ahead = command["size"], command["ahead"]
                return await stream(channel, run, command["batches"], size=size, ahead=ahead, access=access)
            case "paced":
                return await paced(channel, run, command["at"])
            case other:
                raise ValueError(f"the load generator knows no command {other!r}")


async def main() -> None:
    print(json.dumps({}), flush=True)
    await serve_commands(handle)


if __name__ == "__main__":
    uvloop.run(main())
