"""The end of a server that exports traces to a collector which does not take them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import pytest

from pointillist_destination.v1.event_service_pb2 import SendOptions, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from tests.support.events import track
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `tracing` is not installed")

GRACE = 1.0  # seconds
SLOW = 5.0  # seconds per export


@asynccontextmanager
async def collector(kind: str) -> AsyncIterator[str]:
    """Run a collector that refuses connections, never answers or is slow; yields its URL."""
    ends: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        if kind == "slow":
            await reader.read(1)
            await asyncio.sleep(SLOW)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    if kind == "refuses":
        server.close()
    yield f"http://{host}:{port}"
    server.close()
    for writer in ends:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("kind", "calls"),
    [("silent", 100), *(pytest.param(kind, 3000, marks=pytest.mark.long) for kind in ("refuses", "silent", "slow"))],
)
async def test_a_collector_that_takes_no_spans_does_not_hold_the_end_up(tmp_path: Path, kind: str, calls: int) -> None:
    async with running_sandbox() as sandbox, collector(kind) as url:
        settings = settings_for(tmp_path / "outbox.db", sandbox, shutdown_grace=f"{GRACE:.0f}s")
        server = await ServerProcess.start(settings, {"OTEL_EXPORTER_OTLP_ENDPOINT": url})
        try:
            # given
            async with grpc.aio.insecure_channel(server.address) as channel:
                request = TrackRequest(track=track(), options=SendOptions(validate_only=True))
                for _ in range(0, calls, 100):
                    await asyncio.gather(*(EventServiceStub(channel).Track(request) for _ in range(100)))

            # when
            began = time.monotonic()
            await server.stop()
            took = time.monotonic() - began
        finally:
            await server.kill()

    # then
    lines = [orjson.loads(line) for line in server.log if line.startswith("{")]
    [count] = [line["count"] for line in lines if line["event"] == "spans not exported"]
    assert count >= calls
    if calls == 3000:
        assert took < GRACE + 3.0
