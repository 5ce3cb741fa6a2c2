"""A call that waits for a delivery is repeated across the end of a server: it waits for the event that waits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from pointillist_destination.v1.event_service_pb2 import (
    OUTCOME_DELIVERED,
    OUTCOME_DUPLICATE,
    Outcome,
    SendOptions,
    TrackRequest,
)
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import track
from tests.support.nats import NatsServer
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.servers import failure
from tests.support.waiting import DEADLINE, until


async def send(server: ServerProcess, *, wait: bool = True) -> Outcome.ValueType:
    """Send the event; gives the outcome."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        request = TrackRequest(track=track(1), options=SendOptions(wait_for_delivery=wait))
        return (await EventServiceStub(channel).Track(request, timeout=DEADLINE)).receipt.outcome


async def until_counted(server: ServerProcess, outcome: str) -> None:
    """Wait until an event had an outcome at a server."""
    await server.until_metrics(lambda metrics: metrics.get(f"events_total{{{outcome}}}"))


@pytest.fixture(params=["sqlite", "nats"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of an outbox in each store."""
    if request.param == "sqlite":
        return {"outbox_url": f"sqlite:///{tmp_path / 'outbox.db'}"}
    server: NatsServer = request.getfixturevalue("nats_server")
    return {"outbox_url": server.url, "nats_stream": request.getfixturevalue("prefix"), "outbox_max_bytes": "16MiB"}


@asynccontextmanager
async def repeated(sandbox: Sandbox, outbox: dict[str, str], workers: str, signal: str) -> AsyncIterator[ServerProcess]:
    """Have a caller wait for a delivery when its server ends; yields the server to which it sends the event again."""
    settings = settings_for(Path(), sandbox, relay_workers=workers, shutdown_grace="2s", **outbox)
    is_shared = outbox["outbox_url"].startswith("nats")
    async with contextlib.AsyncExitStack() as stack:
        first = await ServerProcess.spawn(settings)
        stack.push_async_callback(first.kill)
        other = await ServerProcess.spawn(settings) if is_shared else None
        await first.serving()
        if other is not None:
            stack.push_async_callback(other.kill)
            await other.serving()
        call = asyncio.ensure_future(failure(send(first)))
        await until_counted(first, "accepted")
        await until(lambda: sandbox.requests > 0)
        await (first.stop() if signal == "SIGTERM" else first.kill())
        assert (await call).code is grpc.StatusCode.UNAVAILABLE
        if other is None:
            other = await ServerProcess.spawn(settings)
            stack.push_async_callback(other.kill)
            await other.serving()
        yield other


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
async def test_a_repeat_is_answered_once_the_event_is_delivered(
    outbox: dict[str, str], relay_workers: str, signal: str
) -> None:
    async with (
        running_sandbox(Behaviour({"503": 1.0})) as sandbox,
        repeated(sandbox, outbox, relay_workers, signal) as server,
    ):
        # when the event is sent again, and has no answer while it is not delivered
        repeat = asyncio.ensure_future(send(server))
        await until_counted(server, "duplicate")
        before = sandbox.requests
        await until(lambda: sandbox.requests > before, DEADLINE)
        assert not repeat.done()
        sandbox.behaviour = Behaviour()

        # then
        assert await repeat == OUTCOME_DELIVERED
        assert [taken.message_id for taken in sandbox.records] == ["m-1"]


@pytest.mark.parametrize("signal", ["SIGKILL"])
async def test_a_repeat_is_told_that_pointillist_refused_the_event(
    outbox: dict[str, str], relay_workers: str, signal: str
) -> None:
    async with (
        running_sandbox(Behaviour({"503": 1.0})) as sandbox,
        repeated(sandbox, outbox, relay_workers, signal) as server,
    ):
        # when it is a dead letter before the event is sent again, and while a caller waits
        repeat = asyncio.ensure_future(failure(send(server)))
        await until_counted(server, "duplicate")
        sandbox.behaviour = Behaviour({"400": 1.0})
        told = [await repeat, await failure(send(server))]

        # then
        assert [failure.code for failure in told] == [grpc.StatusCode.FAILED_PRECONDITION] * 2
        assert [failure.info.metadata["reason"] for failure in told] == ["400"] * 2


async def test_a_repeat_of_an_event_that_was_delivered_meanwhile_is_a_duplicate(outbox: dict[str, str]) -> None:
    async with (
        running_sandbox(Behaviour({"503": 1.0})) as sandbox,
        repeated(sandbox, outbox, "0", "SIGTERM") as server,
    ):
        sandbox.behaviour = Behaviour()
        await until(lambda: sandbox.taken == 1, DEADLINE)
        await server.until_metrics(lambda metrics: metrics["outbox_events"] == 0)

        # then
        assert await send(server) == OUTCOME_DUPLICATE
