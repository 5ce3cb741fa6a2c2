"""Traces for OpenTelemetry: a span for each call, under the caller's own.

Off unless OpenTelemetry's own environment variables name an exporter, and then nothing of it is imported. On, it needs
the extra `tracing`: `pip install pointillist-destination[tracing]`. OpenTelemetry reads everything else, such as the
sampler and the service's name, from its own variables.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import structlog

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER: Final = "OTEL_TRACES_EXPORTER"
DISABLED: Final = "OTEL_SDK_DISABLED"
SERVICE_NAME: Final = "pointillist-destination"
# Codes that are our fault; OpenTelemetry's conventions mark a server's span as failed for these and no others.
SERVER_FAULTS: Final = frozenset({"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"})

log = structlog.get_logger()


class CallSpan(Protocol):
    """The span of one call."""

    def end(self, code: str) -> None:
        """End it with the name of its gRPC code."""


class Tracing(Protocol):
    """What makes spans."""

    def call(self, path: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> CallSpan:
        """Begin the span of a call, under the one that its metadata names as `traceparent`."""

    def close(self) -> None:
        """Export what is left."""


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Tell whether OpenTelemetry's own variables ask for traces."""
    if environ.get(DISABLED, "").strip().lower() == "true":
        return False
    exporter = environ.get(EXPORTER, "").strip().lower()
    return exporter == "otlp" or (not exporter and any(environ.get(name, "").strip() for name in ENDPOINTS))


def start_tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Start what the environment asks for; None where it asks for nothing, or where a package is missing."""
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
    except ImportError as error:
        log.warning("no traces: a package is missing", why=str(error), right="install pointillist-destination[tracing]")
        return None
    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE_NAME}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("traces are exported")
    return _OpenTelemetry(provider.get_tracer(SERVICE_NAME), provider.shutdown)


class _OpenTelemetry:
    """Tracing by OpenTelemetry."""

    def __init__(self, tracer: Any, shutdown: Callable[[], None]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._tracer = tracer
        self._shutdown = shutdown
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER
        self.failed = Status(StatusCode.ERROR)
        self.codes = _CODE_NUMBERS

    def call(self, path: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> "_Span":
        """Begin the span of a call."""
        carrier = {key: value for key, value in metadata or () if key in {"traceparent", "tracestate"}}
        service, _, method = path.lstrip("/").partition("/")
        span = self._tracer.start_span(
            path.lstrip("/"),
            context=self._extract(carrier),
            kind=self._kind,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return _Span(self, span)

    def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        self._shutdown()


class _Span:
    """The span of one call."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: _OpenTelemetry, span: Any) -> None:
        self._tracing = tracing
        self._span = span

    def end(self, code: str) -> None:
        """End it."""
        self._span.set_attribute("rpc.grpc.status_code", _CODE_NUMBERS[code])
        if code in SERVER_FAULTS:
            self._span.set_status(self._tracing.failed)
        self._span.end()


_CODE_NUMBERS: Final = {
    "OK": 0,
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
