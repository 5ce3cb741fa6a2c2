"""Traces: spans of a real server, as a receiver of OpenTelemetry's protocol gets them."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import structlog
from aiohttp import web
from grpc_health.v1 import health_pb2

from pointillist_destination.v1.event_service_pb2 import TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox import Sandbox
from service.tracing import is_wanted, start_tracing
from tests.acceptance.processes import PROJECT, TOKEN, ServerProcess, settings_for
from tests.support.events import track

trace_service_pb2 = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra `tracing` is not installed"
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
HEALTH = "/grpc.health.v1.Health/Check"


@dataclass
class Receiver:
    """Takes spans in OpenTelemetry's protocol over HTTP."""

    url: str = ""
    spans: list[tuple[str, Any]] = field(default_factory=list)
    """The service's name, and each span."""

    async def take(self, request: web.Request) -> web.Response:
        export = trace_service_pb2.ExportTraceServiceRequest.FromString(await request.read())
        for resource in export.resource_spans:
            attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope.spans]
        return web.Response()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield receiver
    await runner.cleanup()


async def test_each_call_is_a_span_under_the_callers_and_health_checks_are_none(tmp_path: Path) -> None:
    # given
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    async with receiving() as receiver:
        server = await ServerProcess.start(
            settings_for(tmp_path / "outbox.db", sandbox), {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        )
        try:
            # when
            async with grpc.aio.insecure_channel(server.address) as channel:
                events = EventServiceStub(channel)
                await events.Track(
                    TrackRequest(track=track()), metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
                )
                with pytest.raises(grpc.aio.AioRpcError):
                    await events.Track(TrackRequest())
                health: Any = channel.unary_unary(HEALTH, health_pb2.HealthCheckRequest.SerializeToString)
                await health(health_pb2.HealthCheckRequest())
            # and what is left is exported at the end
            await server.stop()
        finally:
            await server.kill()
            await sandbox.stop()

    # then
    seen = [
        (
            service,
            span.name,
            {one.key: one.value.int_value or one.value.string_value for one in span.attributes}["rpc.grpc.status_code"],
        )
        for service, span in receiver.spans
    ]
    name = "pointillist_destination.v1.EventService/Track"
    assert seen == [("pointillist-destination", name, ""), ("pointillist-destination", name, 3)]
    with_parent, alone = (span for _, span in receiver.spans)
    assert (with_parent.trace_id.hex(), with_parent.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert alone.parent_span_id == b""


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
    ],
)
def test_opentelemetrys_own_variables_turn_it_on(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) == wanted


def test_an_exporter_that_there_is_not_is_told() -> None:
    with structlog.testing.capture_logs() as lines:
        assert start_tracing({"OTEL_TRACES_EXPORTER": "zipkin"}) is None
    assert [(line["log_level"], line["value"], line["right"]) for line in lines] == [("warning", "zipkin", "otlp")]


def in_a_process_of_its_own(program: str) -> str:
    stubs = os.pathsep.join([str(PROJECT), str(PROJECT / "generated")])
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": stubs},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout


def test_nothing_of_it_is_imported_when_it_is_off() -> None:
    program = (
        "import sys, service.app; from service.tracing import start_tracing; assert start_tracing({}) is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert in_a_process_of_its_own(program).strip() == "[]"


def test_a_missing_package_is_told_and_the_server_serves_without_traces() -> None:
    # given a Python that finds no OpenTelemetry
    program = (
        "import sys; sys.modules['opentelemetry'] = None;"
        "from service.telemetry import configure_logging; configure_logging('info', 'json', sys.stdout);"
        "from service.tracing import start_tracing; assert start_tracing({'OTEL_TRACES_EXPORTER': 'otlp'}) is None"
    )
    [line] = in_a_process_of_its_own(program).splitlines()
    said = orjson.loads(line)
    assert said["level"] == "warning"
    assert said["right"] == "install pointillist-destination[tracing]"
