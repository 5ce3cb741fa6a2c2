"""Health and reflection over real sockets."""

import ctypes
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import track
from tests.support.sandboxes import TOKEN
from tests.support.servers import NAME, NOT_SERVING, SERVING, Serving, serving, until_health
from tests.support.waiting import until

NAMES = ["", NAME, "liveness", "delivery"]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
async def test_a_server_without_troubles_serves_under_every_name(server: Serving, name: str) -> None:
    await until_health(server.channel, name, SERVING)
    assert await server.health(name) == SERVING


async def test_a_name_that_is_not_known_is_not_found(server: Serving) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await server.health("nonsense")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("status", ["503", "401", "drop"])
async def test_pointillists_outage_turns_delivery_alone(server: Serving, status: str) -> None:
    # given
    server.sandbox.behaviour = Behaviour({status: 1})
    for number in range(30):
        await server.events.Track(TrackRequest(track=track(number)))

    # when
    await until_health(server.channel, "delivery", NOT_SERVING)

    # then
    assert [await server.health(name) for name in NAMES[:3]] == [SERVING] * 3
    server.sandbox.behaviour = Behaviour()
    await until_health(server.channel, "delivery", SERVING)


async def test_a_wrong_token_turns_delivery_and_loses_nothing(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong")
    environ = {"POINTILLIST_API_TOKEN": "", "POINTILLIST_API_TOKEN_FILE": str(token)}
    async with serving(tmp_path, environ, Sandbox(api_token=TOKEN)) as server:
        # given
        for number in range(5):
            await server.events.Track(TrackRequest(track=track(number)))
        await until_health(server.channel, "delivery", NOT_SERVING)
        assert server.sandbox.taken == 0

        # when it is mended without a restart
        token.write_text(TOKEN)

        # then
        await until(lambda: server.sandbox.taken == 5)
        await until_health(server.channel, "delivery", SERVING)


async def test_a_full_outbox_turns_readiness_until_a_tenth_is_free(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_OUTBOX_MAX_EVENTS": "10"}) as server:
        # given
        server.sandbox.behaviour = Behaviour({"503": 1})
        for number in range(10):
            await server.events.Track(TrackRequest(track=track(number)))

        # when
        await until_health(server.channel, "", NOT_SERVING)
        await until_health(server.channel, NAME, NOT_SERVING)

        # then
        assert await server.health("liveness") == SERVING
        server.sandbox.behaviour = Behaviour()
        await until_health(server.channel, "", SERVING)
        await until_health(server.channel, NAME, SERVING)


async def test_a_writer_of_the_outbox_that_ends_turns_liveness_and_readiness(server: Serving) -> None:
    # given
    await server.events.Track(TrackRequest(track=track()))
    assert await server.health("liveness") == SERVING
    [writer] = [thread for thread in threading.enumerate() if thread.name == "outbox-writer"]

    # when it ends of something that nobody foresaw, which only Python itself can bring about
    assert writer.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(writer.ident), ctypes.py_object(SystemExit))

    # then
    for name in ("liveness", "", NAME):
        await until_health(server.channel, name, NOT_SERVING)
    await until(lambda: not writer.is_alive())


async def test_health_is_served_alone_where_asked_for(tmp_path: Path) -> None:
    environ = {"POINTILLIST_HEALTH_LISTEN": "127.0.0.1:0"}
    async with serving(tmp_path, environ) as server:
        assert await server.health("") == SERVING


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def services(server: Serving) -> list[str]:
    """The services that reflection lists."""
    call = server.channel.stream_stream(
        REFLECTION,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    call.cancel()
    assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
    return sorted(service.name for service in answer.list_services_response.service)


async def test_reflection_lists_every_service(server: Serving) -> None:
    assert await services(server) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "pointillist_destination.v1.DeadLetterService",
        "pointillist_destination.v1.EventService",
    ]


async def test_reflection_can_be_turned_off(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_REFLECTION": "false"}) as server:
        # With its request in the call itself: a write to a call that the server has ended fails as INTERNAL.
        method: Any = server.channel.unary_stream(REFLECTION)
        assert await method(b"").code() is grpc.StatusCode.UNIMPLEMENTED
