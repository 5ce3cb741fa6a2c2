"""Traces for OpenTelemetry: a span for each call, under the caller's own, and one for each POST of its events.

    caller's span > call's span > outbox        one trace
                              ^
                              └─ link ─ POST    a trace of its own for each attempt, hours later perhaps

An event keeps the `traceparent` of the call that accepted it. A POST is linked to that call and not under it, as
OpenTelemetry's conventions for messaging have it: a trace would else last as long as an outage. Whether a call is
sampled is decided once, where its trace begins; its events' POSTs follow that.

Off unless OpenTelemetry's own environment variables name an exporter, and then nothing of it is imported. On, it needs
the extra `tracing`: `pip install pointillist-destination[tracing]`. OpenTelemetry reads everything else, such as the
sampler and the service's name, from its own variables.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import structlog

from service.pointillist.answer import Answer

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER: Final = "OTEL_TRACES_EXPORTER"
DISABLED: Final = "OTEL_SDK_DISABLED"
SERVICE_NAME: Final = "pointillist-destination"
METHOD: Final = "POST"  # of a POST's span, too: the address says no more than the service's name
# Codes that are our fault; OpenTelemetry's conventions mark a server's span as failed for these and no others.
SERVER_FAULTS: Final = frozenset({"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"})

CLOSE_TIME: Final = 2.0  # seconds at the end of the process, in which a collector must take the last spans

CALL: Final[ContextVar[str]] = ContextVar("traceparent of the call that is being answered", default="")
"""Each call is a task of its own, so it and the tasks that it starts see their own; "" where it is not sampled."""

log = structlog.get_logger()


class CallSpan(Protocol):
    """The span of one call."""

    traceparent: str
    """Its W3C traceparent; "" where it is not sampled."""

    def end(self, code: str) -> None:
        """End it with the name of its gRPC code."""


class Tracing(Protocol):
    """Records spans."""

    def call(self, path: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> CallSpan:
        """Begin the span of a call, under the one that its metadata names as `traceparent`."""

    def attempt(self, traceparent: str, number: int, answer: Answer, started_at: float, ended_at: float) -> None:
        """Make the span of a POST that has its answer; none where the call that accepted the event was not sampled.

        Args:
            traceparent: of that call.
            number: which of the event's POSTs it was, from 1.
            answer: to the POST.
            started_at: seconds since the epoch.
            ended_at: seconds since the epoch.
        """

    async def close(self) -> None:
        """Export the remaining spans, for some seconds at most; log how many were not."""


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Tell whether OpenTelemetry's own variables ask for traces."""
    if environ.get(DISABLED, "").strip().lower() == "true":
        return False
    exporter = environ.get(EXPORTER, "").strip().lower()
    return exporter == "otlp" or (not exporter and any(environ.get(name, "").strip() for name in ENDPOINTS))


def start_tracing(environ: Mapping[str, str], api_url: str) -> Tracing | None:
    """Start tracing as the environment asks for it; None if it asks for none, or a package is missing.

    Args:
        environ: has OpenTelemetry's own variables.
        api_url: where events are POSTed.
    """
    exporter = environ.get(EXPORTER, "").strip()
    if exporter.lower() not in {"", "otlp", "none"}:
        log.warning("no traces: only one exporter is available", variable=EXPORTER, value=exporter, right="otlp")
    if not is_wanted(environ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  see above
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415
    except ImportError as error:
        log.warning("no traces: a package is missing", why=str(error), right="install pointillist-destination[tracing]")
        return None
    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE_NAME}
    counting = CountingExporter(OTLPSpanExporter())
    resource, processor = Resource.create(named), BatchSpanProcessor(cast("Any", counting))
    calls = TracerProvider(resource=resource, shutdown_on_exit=False)
    # Its sampler takes all, as an attempt whose call was not sampled never comes to it.
    attempts = TracerProvider(ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    for provider in (calls, attempts):
        provider.add_span_processor(processor)
    log.info("traces are exported")
    tracers = (calls.get_tracer(SERVICE_NAME), attempts.get_tracer(SERVICE_NAME))
    return _OpenTelemetry(tracers, processor, counting, address_of(api_url))


def address_of(api_url: str) -> dict[str, str | int]:
    """A URL as OpenTelemetry's conventions for HTTP clients name its parts, without its secrets."""
    parts = urlsplit(api_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return {"server.address": host, "server.port": port, "url.full": bare}


class CountingExporter:
    """An exporter of OpenTelemetry that counts the spans which it exported."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self.exported = 0
        """Spans that the collector took."""

    def export(self, spans: Sequence[Any]) -> Any:
        """Export spans."""
        result = self._exporter.export(spans)
        if result.name == "SUCCESS":
            self.exported += len(spans)
        return result

    def shutdown(self) -> None:
        """End, also while spans are exported."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what is left."""
        return bool(self._exporter.force_flush(timeout_millis))


class _OpenTelemetry:
    """Tracing by OpenTelemetry."""

    def __init__(
        self, tracers: tuple[Any, Any], processor: Any, exporter: CountingExporter, address: dict[str, str | int]
    ) -> None:
        """Make it.

        Args:
            tracers: of calls, and of POSTs.
            processor: exports their spans.
            exporter: counts those that are exported.
            address: attributes of every POST.
        """
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._calls, self._attempts = tracers
        self._processor = processor
        self._exporter = exporter
        self.ended = 0  # spans that are to be exported
        self._extract = TraceContextTextMapPropagator().extract
        self._no_parent = Context()
        self._link = trace.Link
        self._span_in = trace.get_current_span
        self._server, self._client = trace.SpanKind.SERVER, trace.SpanKind.CLIENT
        self._attributes: dict[str, str | int] = {"http.request.method": METHOD, **address}
        self.failed = trace.Status(trace.StatusCode.ERROR)

    def call(self, path: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> "_Span":
        """Begin the span of a call."""
        carrier = {key: value for key, value in metadata or () if key in {"traceparent", "tracestate"}}
        name = path.lstrip("/")
        span = self._calls.start_span(
            name,
            context=self._extract(carrier),
            kind=self._server,
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
        )
        return _Span(self, span)

    def attempt(self, traceparent: str, number: int, answer: Answer, started_at: float, ended_at: float) -> None:
        """Make the span of a POST. See Tracing.attempt."""
        accepted = self._span_in(self._extract({"traceparent": traceparent})).get_span_context()
        if not accepted.trace_flags.sampled:
            return
        attributes = dict(self._attributes)
        if answer.status is not None:
            attributes["http.response.status_code"] = answer.status
        if number > 1:
            attributes["http.request.resend_count"] = number - 1
        error = error_type(answer)
        if error is not None:
            attributes["error.type"] = error
        span = self._attempts.start_span(
            METHOD,
            context=self._no_parent,
            kind=self._client,
            attributes=attributes,
            links=[self._link(accepted)],
            start_time=_nanoseconds(started_at),
        )
        if error is not None:
            span.set_status(self.failed)
        span.end(_nanoseconds(ended_at))
        self.ended += 1

    async def close(self) -> None:
        """Export the remaining spans. See Tracing.close."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._processor.shutdown()
            with contextlib.suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(done.set)

        # A daemon thread: the end of the process waits for any other, however long a collector takes.
        threading.Thread(target=shut_down, name="last-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIME):
                await done.wait()
        if (count := self.ended - self._exporter.exported) > 0:
            log.warning("spans not exported", count=count)


class _Span:
    """The span of one call."""

    __slots__ = ("_span", "_tracing", "traceparent")

    def __init__(self, tracing: _OpenTelemetry, span: Any) -> None:
        self._tracing = tracing
        self._span = span
        own = span.get_span_context()
        self.traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-01" if own.trace_flags.sampled else ""

    def end(self, code: str) -> None:
        """End it."""
        self._span.set_attribute("rpc.response.status_code", code)
        if code in SERVER_FAULTS:
            self._span.set_attribute("error.type", code)
            self._span.set_status(self._tracing.failed)
        self._span.end()
        self._tracing.ended += bool(self.traceparent)


def _nanoseconds(seconds: float) -> int:
    """As OpenTelemetry counts time; a float of seconds since the epoch holds no more than microseconds."""
    return round(seconds * 1e6) * 1000


def error_type(answer: Answer) -> str | None:
    """Return OpenTelemetry's `error.type` of an answer; None for a delivered event. A redirect is an error."""
    if answer.status is None:
        return str(answer.failure)
    return None if 200 <= answer.status <= 299 else str(answer.status)
