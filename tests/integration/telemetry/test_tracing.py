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

from pointillist_destination.v1.dead_letter_service_pb2 import DeadLetterFilter, ReplayRequest
from pointillist_destination.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from pointillist_destination.v1.event_pb2 import Event
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.pointillist.answer import Answer, Failure
from service.sandbox.server import Behaviour, Sandbox
from service.telemetry.tracing import is_wanted, start_tracing
from tests.support.events import track
from tests.support.paths import PROJECT
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.servers import serving
from tests.support.waiting import until

trace_service_pb2 = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra `tracing` is not installed"
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
HEALTH = "/grpc.health.v1.Health/Check"
SERVER, CLIENT = 2, 3  # the kinds of spans, as the protocol numbers them


@dataclass
class Receiver:
    """Takes spans in OpenTelemetry's protocol over HTTP."""

    url: str = ""
    spans: list[tuple[str, Any]] = field(default_factory=list)
    """The service's name, and each span."""

    def of_kind(self, kind: int) -> list[Any]:
        """The spans of a kind, by their start."""
        return sorted(
            (span for _, span in self.spans if span.kind == kind), key=lambda span: int(span.start_time_unix_nano)
        )

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


def attributes_of(span: Any) -> dict[str, int | str]:
    """A span's attributes; protobuf cannot tell a zero from nothing, so a zero is ""."""
    return {one.key: one.value.int_value or one.value.string_value for one in span.attributes}


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
                await events.Track(TrackRequest(track=track()), metadata=(("traceparent", TRACEPARENT),))
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
    assert {service for service, _ in receiver.spans} == {"pointillist-destination"}
    name = "pointillist_destination.v1.EventService/Track"
    assert [span.name for span in receiver.of_kind(SERVER)] == [name, name]
    common = {"rpc.system.name": "grpc", "rpc.method": name}
    assert [attributes_of(span) for span in receiver.of_kind(SERVER)] == [
        {**common, "rpc.response.status_code": "OK"},
        {**common, "rpc.response.status_code": "INVALID_ARGUMENT"},
    ]
    with_parent, alone = receiver.of_kind(SERVER)
    assert (with_parent.trace_id.hex(), with_parent.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert alone.parent_span_id == b""


async def test_each_attempt_is_a_span_linked_to_the_call_whose_event_it_delivers(tmp_path: Path) -> None:
    # given a Pointillist that fails
    sandbox = Sandbox(api_token=TOKEN, behaviour=Behaviour({"503": 1}))
    await sandbox.start("127.0.0.1", 0)
    settings = settings_for(tmp_path / "outbox.db", sandbox)
    async with receiving() as receiver:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        server = await ServerProcess.start(settings, environment)
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                await EventServiceStub(channel).Track(
                    TrackRequest(track=track()), metadata=(("traceparent", TRACEPARENT),)
                )
            await until(lambda: sandbox.requests)
            await server.stop()

            # when it takes the event, after a restart of the server
            sandbox.behaviour = Behaviour()
            server = await ServerProcess.start(settings, environment)
            await until(lambda: sandbox.taken)
            await server.stop()
        finally:
            await server.kill()
            await sandbox.stop()

    # then there is one span for each POST, each with a link and in a trace of its own
    [call] = receiver.of_kind(SERVER)
    attempts = receiver.of_kind(CLIENT)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert len(attempts) == sandbox.requests >= 2
    assert len({span.trace_id for span in [call, *attempts]}) == 1 + len(attempts)
    for number, span in enumerate(attempts):
        [link] = span.links
        assert (link.trace_id, link.span_id, span.parent_span_id) == (call.trace_id, call.span_id, b"")
        assert attributes_of(span).get("http.request.resend_count", 0) == number
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    statuses = [attributes_of(span)["http.response.status_code"] for span in attempts]
    assert statuses == [503] * (len(attempts) - 1) + [200]


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_the_events_of_a_batch_are_linked_to_their_stream_whoever_carries_them(
    tmp_path: Path, tracing: Receiver, workers: str
) -> None:
    async with serving(tmp_path, {"POINTILLIST_RELAY_WORKERS": workers}) as server:
        events = [Event(track=track(number)) for number in range(3)]
        call = server.events.BatchSend(metadata=(("traceparent", TRACEPARENT),))
        await call.write(BatchSendRequest(events=events))
        await call.done_writing()
        assert [answer.accepted async for answer in call] == [3]
        await until(lambda: server.sandbox.taken == 3)

    [stream] = tracing.of_kind(SERVER)
    assert stream.trace_id.hex() == TRACE_ID
    assert [span.links[0].span_id for span in tracing.of_kind(CLIENT)] == [stream.span_id] * 3


async def test_the_attempts_of_a_replayed_event_are_linked_too(tmp_path: Path, tracing: Receiver) -> None:
    async with serving(tmp_path) as server:
        # given a dead letter
        server.sandbox.behaviour = Behaviour({"422": 1})
        await server.events.Track(TrackRequest(track=track()), metadata=(("traceparent", TRACEPARENT),))
        dead_letters = DeadLetterServiceStub(server.channel)
        await until(lambda: server.sandbox.requests)

        # when
        server.sandbox.behaviour = Behaviour()
        replayed = 0
        while not replayed:  # the dead letter is on disk soon after its answer
            replayed = (await dead_letters.Replay(ReplayRequest(filter=DeadLetterFilter(reason="422")))).replayed
        await until(lambda: server.sandbox.taken)

    call = tracing.of_kind(SERVER)[0]
    attempts = tracing.of_kind(CLIENT)
    assert [attributes_of(span)["http.response.status_code"] for span in attempts] == [422, 200]
    assert [span.links[0].span_id for span in attempts] == [call.span_id] * 2


@pytest.mark.parametrize(
    ("traceparent", "attempts"), [(TRACEPARENT, 1), (NOT_SAMPLED, 0), (None, 0)], ids=["yes", "no", "silent"]
)
async def test_attempts_are_sampled_as_their_caller_decided_and_else_by_the_ratio(
    tmp_path: Path, tracing: Receiver, monkeypatch: pytest.MonkeyPatch, traceparent: str | None, attempts: int
) -> None:
    # given a sampler that takes nothing by itself
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")

    # when
    async with serving(tmp_path) as server:
        metadata = () if traceparent is None else (("traceparent", traceparent),)
        await server.events.Track(TrackRequest(track=track()), metadata=metadata)
        await until(lambda: server.sandbox.taken)

    # then
    assert (len(tracing.of_kind(SERVER)), len(tracing.of_kind(CLIENT))) == (attempts, attempts)


async def test_an_event_that_was_accepted_while_traces_were_off_has_no_attempts(
    tmp_path: Path, tracing: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    with monkeypatch.context() as off:
        off.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
        async with serving(tmp_path, sandbox=Sandbox(api_token=TOKEN, behaviour=Behaviour({"503": 1}))) as server:
            await server.events.Track(TrackRequest(track=track()), metadata=(("traceparent", TRACEPARENT),))

    # when
    async with serving(tmp_path, {"POINTILLIST_API_TOKEN": TOKEN}, Sandbox(api_token=TOKEN)) as server:
        await until(lambda: server.sandbox.taken)

    # then
    assert tracing.spans == []


@pytest.fixture
async def tracing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """A receiver that servers in this process export to."""
    async with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


ADDRESS = {
    "http.request.method": "POST",
    "server.address": "stream.pointillist.com",
    "server.port": 8443,
    "url.full": "https://stream.pointillist.com:8443/event",
}
FAILED = 2  # a span's status


@pytest.mark.parametrize(
    ("answer", "number", "attributes", "status"),
    [
        (Answer(200), 1, {"http.response.status_code": 200}, 0),
        (Answer(204), 3, {"http.response.status_code": 204, "http.request.resend_count": 2}, 0),
        (Answer(400, body_start="no"), 1, {"http.response.status_code": 400, "error.type": "400"}, FAILED),
        (Answer(302), 1, {"http.response.status_code": 302, "error.type": "302"}, FAILED),
        (Answer(failure=Failure.TIMEOUT, detail="10 s"), 1, {"error.type": "timeout"}, FAILED),
    ],
)
async def test_the_span_of_an_attempt_says_what_the_post_came_to_and_nothing_of_the_event(
    tracing: Receiver, answer: Answer, number: int, attributes: dict[str, int | str], status: int
) -> None:
    # given
    spans = start_tracing(os.environ, "https://user:password@stream.pointillist.com:8443/event?key=secret")
    assert spans is not None

    # when
    spans.attempt(TRACEPARENT, number, answer, 1_800_000_000.25, 1_800_000_000.5)
    await spans.close()

    # then
    [(_, span)] = tracing.spans
    assert (span.name, span.kind, span.status.code) == ("POST", CLIENT, status)
    assert attributes_of(span) == ADDRESS | attributes
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (
        1_800_000_000_250_000_000,
        1_800_000_000_500_000_000,
    )


@pytest.mark.parametrize("traceparent", ["", NOT_SAMPLED, "nonsense", f"00-{'0' * 32}-{PARENT_ID}-01"])
async def test_an_attempt_without_a_sampled_call_has_no_span(tracing: Receiver, traceparent: str) -> None:
    spans = start_tracing(os.environ, "https://stream.pointillist.com/event")
    assert spans is not None
    spans.attempt(traceparent, 1, Answer(200), 1.0, 2.0)
    await spans.close()
    assert tracing.spans == []


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
        assert start_tracing({"OTEL_TRACES_EXPORTER": "zipkin"}, "") is None
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
        "import sys, service.app; from service.telemetry.tracing import start_tracing;"
        "assert start_tracing({}, '') is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert in_a_process_of_its_own(program).strip() == "[]"


def test_a_missing_package_is_told_and_the_server_serves_without_traces() -> None:
    # given a Python that finds no OpenTelemetry
    program = (
        "import sys; sys.modules['opentelemetry'] = None;"
        "from service.telemetry.logs import configure_logging; configure_logging('info', 'json', sys.stdout);"
        "from service.telemetry.tracing import start_tracing;"
        "assert start_tracing({'OTEL_TRACES_EXPORTER': 'otlp'}, '') is None"
    )
    [line] = in_a_process_of_its_own(program).splitlines()
    said = orjson.loads(line)
    assert said["level"] == "warning"
    assert said["right"] == "install pointillist-destination[tracing]"
