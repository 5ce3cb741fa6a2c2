"""A whole server in this process, with a sandbox behind it, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from pointillist_destination.v1 import event_service_pb2_grpc
from service.app import App
from service.config.role import Role
from service.config.settings import load_settings
from service.sandbox.server import Sandbox
from tests.support.sandboxes import TOKEN
from tests.support.waiting import DEADLINE

NAME = "pointillist_destination.v1.EventService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Serving:
    """A server that takes events in, and where they end."""

    app: App
    sandbox: Sandbox
    channel: grpc.aio.Channel
    task: asyncio.Task[None]

    @property
    def events(self) -> "event_service_pb2_grpc.EventServiceAsyncStub":
        """Calls EventService."""
        return event_service_pb2_grpc.EventServiceStub(self.channel)

    @property
    def delivered(self) -> list[str]:
        """The message_ids that the sandbox took."""
        return [record.message_id for record in self.sandbox.records]

    async def health(self, name: str) -> int:
        """What health says of a name now."""
        call = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        answer = await call(health_pb2.HealthCheckRequest(service=name))
        return int(answer.status)

    async def stop(self) -> None:
        """Stop the server as a signal does, and wait for its end."""
        self.app.stop()
        async with asyncio.timeout(DEADLINE):
            await self.task


async def until_health(channel: grpc.aio.Channel, name: str, status: int) -> None:
    """Watch a name of health until it has a status."""
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    call = watch(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE)
    async for answer in call:
        if answer.status == status:
            break
    call.cancel()


@asynccontextmanager
async def serving(
    folder: Path, environ: Mapping[str, str] | None = None, sandbox: Sandbox | None = None, role: Role = Role.ALL
) -> AsyncIterator[Serving]:
    """Run a server on a free port, with its outbox in `folder`.

    Args:
        folder: where the outbox is.
        environ: settings beyond those that every test needs.
        sandbox: one that is ready but not started.
        role: what the server does.
    """
    sandbox = sandbox or Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    given = {
        "POINTILLIST_API_TOKEN": TOKEN,
        "POINTILLIST_API_URL": sandbox.url,
        "POINTILLIST_GRPC_LISTEN": "127.0.0.1:0",
        "POINTILLIST_METRICS_LISTEN": "",
        "POINTILLIST_OUTBOX_URL": f"sqlite:///{folder}/outbox.db",
        "POINTILLIST_DISK_FREE_FLOOR": "0",
        "POINTILLIST_SHUTDOWN_GRACE": "2s",
    }
    app = App(load_settings(given | dict(environ or {})), role)
    started = asyncio.Event()
    task = asyncio.create_task(app.run(lambda _: started.set()))
    waiting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        async with grpc.aio.insecure_channel(str(app.grpc_listen)) as channel:
            server = Serving(app, sandbox, channel, task)
            yield server
            await server.stop()
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sandbox.stop()


@dataclass(frozen=True)
class Failed:
    """How a call failed, with its rich details."""

    code: grpc.StatusCode
    status: status_pb2.Status
    metadata: dict[str, str | bytes]

    def detail(self, message: Message) -> Message | None:
        """The detail of a message's type, read into it; None where there is none."""
        for detail in self.status.details:
            if detail.Unpack(message):
                return message
        return None

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """Its ErrorInfo, which every error of ours has."""
        info = error_details_pb2.ErrorInfo()
        assert self.detail(info) is not None, self.status
        assert info.domain == "pointillist-destination"
        return info

    @property
    def violations(self) -> dict[str, str]:
        """The violations of its BadRequest, by field."""
        bad_request = error_details_pb2.BadRequest()
        assert self.detail(bad_request) is not None, self.status
        assert len({one.field for one in bad_request.field_violations}) == len(bad_request.field_violations)
        return {one.field: one.description for one in bad_request.field_violations}

    @property
    def retry_after(self) -> float | None:
        """The seconds of its RetryInfo; the pushback in its metadata says the same."""
        retry = error_details_pb2.RetryInfo()
        pushback = self.metadata.get("grpc-retry-pushback-ms")
        if self.detail(retry) is None:
            assert pushback is None
            return None
        assert pushback == str(retry.retry_delay.ToMilliseconds())
        return float(retry.retry_delay.ToMilliseconds()) / 1000


def failed(error: grpc.aio.AioRpcError) -> Failed:
    """Read a failed call."""
    metadata = {str(key): value for key, value in error.trailing_metadata() or ()}
    raw = metadata.get("grpc-status-details-bin", b"")
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    if raw:
        assert (status.code, status.message) == (error.code().value[0], error.details())
    return Failed(error.code(), status, metadata)


async def failure(call: Awaitable[object]) -> Failed:
    """How a call fails."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return failed(error)
    raise AssertionError(answer)
