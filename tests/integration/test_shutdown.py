"""A server as a process: how it stops, and what it refuses to start on."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import event, track
from tests.support.processes import end, start
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.servers import NAME, NOT_SERVING, SERVING, failed, until_health
from tests.support.waiting import DEADLINE


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_server_with_exit_code_0(
    sandbox: Sandbox, tmp_path: Path, number: signal.Signals, relay_workers: str
) -> None:
    async with running_server(sandbox, tmp_path, relay_workers=relay_workers) as server:
        server.process.send_signal(number)
        await server.ended()


async def test_readiness_ends_first_and_calls_still_work_during_the_delay(sandbox: Sandbox, tmp_path: Path) -> None:
    async with (
        running_server(sandbox, tmp_path, shutdown_delay="60s") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        # given
        await until_health(channel, "", SERVING)
        await until_health(channel, "liveness", SERVING)

        # when
        server.process.send_signal(signal.SIGTERM)
        await until_health(channel, "", NOT_SERVING)
        await until_health(channel, NAME, NOT_SERVING)

        # then
        await until_health(channel, "liveness", SERVING)
        await EventServiceStub(channel).Track(TrackRequest(track=track()))

        # and a second signal ends the delay
        server.process.send_signal(signal.SIGTERM)
        await server.ended()
    assert await until_taken(sandbox, 1) == {"m-1"}


async def test_a_stream_is_answered_for_what_it_took_and_ends_unavailable(sandbox: Sandbox, tmp_path: Path) -> None:
    async with (
        running_server(sandbox, tmp_path) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        # given
        call = EventServiceStub(channel).BatchSend()
        await call.write(BatchSendRequest(sequence=1, events=[event(1)]))
        first = await call.read()
        assert first is not grpc.aio.EOF

        # when
        server.process.send_signal(signal.SIGTERM)

        # then
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        error = failed(raised.value)
        assert (error.code, error.info.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert error.retry_after is not None
        await server.ended()


async def test_what_was_not_delivered_is_delivered_after_the_restart(
    sandbox: Sandbox, tmp_path: Path, relay_workers: str
) -> None:
    # given
    sandbox.behaviour = Behaviour({"503": 1})
    async with (
        running_server(sandbox, tmp_path, relay_workers=relay_workers) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        for number in range(20):
            await EventServiceStub(channel).Track(TrackRequest(track=track(number)))

        # when
        await server.stop()
    assert sandbox.taken == 0
    sandbox.behaviour = Behaviour()

    # then
    async with running_server(sandbox, tmp_path):
        assert await until_taken(sandbox, 20) == {f"m-{number}" for number in range(20)}


async def test_a_delivery_that_hangs_does_not_hold_the_shutdown_beyond_its_grace(
    sandbox: Sandbox, tmp_path: Path, relay_workers: str
) -> None:
    # given
    sandbox.behaviour = Behaviour({"hang": 1})
    settings = {"shutdown_grace": "100ms", "request_timeout": "1h", "relay_workers": relay_workers}
    async with (
        running_server(sandbox, tmp_path, **settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await EventServiceStub(channel).Track(TrackRequest(track=track()))
        async with asyncio.timeout(DEADLINE):
            while not sandbox.requests:  # noqa: ASYNC110  the sandbox sets no event
                await asyncio.sleep(0.01)

        # when, then
        await server.stop()
    sandbox.behaviour = Behaviour()
    async with running_server(sandbox, tmp_path):
        assert await until_taken(sandbox, 1) == {"m-1"}


async def refusal(**environ: str) -> str:
    """The one line with which a server does not start."""
    required = {
        "POINTILLIST_API_TOKEN": "token",
        "POINTILLIST_API_URL": "http://127.0.0.1:9/event",
        "POINTILLIST_METRICS_LISTEN": "",
    }
    ended = await end(await start("serve", environ=required | environ))
    assert ended.code == 2
    [line] = [line for line in ended.err_lines if not line.startswith("{")]
    assert "Traceback" not in ended.err
    return line


async def test_a_second_server_on_the_same_outbox_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    async with running_server(sandbox, tmp_path) as server:
        line = await refusal(
            POINTILLIST_GRPC_LISTEN="127.0.0.1:0", POINTILLIST_OUTBOX_URL=f"sqlite:///{tmp_path}/outbox.db"
        )
    assert f"in use by another server (process {server.process.pid})" in line


async def test_a_second_server_on_the_same_port_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    async with running_server(sandbox, tmp_path) as server:
        line = await refusal(
            POINTILLIST_GRPC_LISTEN=server.address,
            POINTILLIST_OUTBOX_URL=f"sqlite:///{tmp_path}/other.db",
            POINTILLIST_RELAY_WORKERS="2",  # none of which is heard of
        )
    assert "POINTILLIST_GRPC_LISTEN" in line
    assert server.address in line


async def test_what_relay_workers_could_not_use_is_refused_by_the_server(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    line = await refusal(
        POINTILLIST_GRPC_LISTEN="127.0.0.1:0",
        POINTILLIST_OUTBOX_URL=f"sqlite:///{tmp_path}/outbox.db",
        POINTILLIST_API_CA_FILE=str(rubbish),
        POINTILLIST_RELAY_WORKERS="2",
    )
    assert f"POINTILLIST_API_CA_FILE: {rubbish}" in line
