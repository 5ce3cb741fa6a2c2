"""Calls at a time of one caller: it is refused more, and nobody else is."""

import hashlib
from pathlib import Path

import grpc

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, BatchSendResponse, TrackRequest
from tests.support.events import event, track
from tests.support.servers import Serving, failure, serving

NARROW, WIDE = "a-token-with-max-calls", "a-token-without"


def file_of_callers(folder: Path) -> Path:
    file = folder / "callers.toml"
    tables = [
        f'[callers.{name}]\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n{more}'
        for name, token, more in (("narrow", NARROW, "max_calls = 2\n"), ("wide", WIDE, ""))
    ]
    file.write_text("\n".join(tables), encoding="utf-8")
    return file


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def open_stream(server: Serving, token: str) -> "grpc.aio.StreamStreamCall[BatchSendRequest, BatchSendResponse]":
    """A stream that has been answered once, and stays open."""
    stream = server.events.BatchSend(metadata=bearer(token))
    await stream.write(BatchSendRequest(events=[event(0)]))
    await stream.read()
    return stream


async def code(server: Serving, request: TrackRequest) -> grpc.StatusCode:
    """How a call of the narrow caller ends."""
    call = server.events.Track(request, metadata=bearer(NARROW))
    return await call.code()


async def test_a_caller_with_as_many_calls_as_it_may_have_is_refused_more_and_others_are_not(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_CALLERS_FILE": str(file_of_callers(tmp_path))}) as server:
        # given
        streams = [await open_stream(server, NARROW) for _ in range(2)]

        # when
        request = TrackRequest(track=track(1))
        refused = await failure(server.events.Track(request, metadata=bearer(NARROW)))
        await server.events.Track(request, metadata=bearer(WIDE))

        # then
        assert (refused.code, refused.info.reason) == (grpc.StatusCode.UNAVAILABLE, "TOO_MANY_CALLS")
        assert refused.info.metadata["caller"] == "narrow"
        assert refused.retry_after is not None
        streams[0].cancel()
        while (again := await code(server, request)) is not grpc.StatusCode.OK:
            assert again is grpc.StatusCode.UNAVAILABLE


async def test_without_max_calls_a_caller_may_have_half_of_all(tmp_path: Path) -> None:
    environ = {"POINTILLIST_CALLERS_FILE": str(file_of_callers(tmp_path)), "POINTILLIST_MAX_CALLS": "6"}
    async with serving(tmp_path, environ) as server:
        _streams = [await open_stream(server, WIDE) for _ in range(3)]
        refused = await failure(server.events.Track(TrackRequest(track=track(1)), metadata=bearer(WIDE)))
        assert refused.info.reason == "TOO_MANY_CALLS"
        await server.events.Track(TrackRequest(track=track(1)), metadata=bearer(NARROW))
