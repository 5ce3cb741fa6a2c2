"""The metrics of gRPC calls, under the names and with the codes' spelling that dashboards for gRPC servers expect.

Those are go-grpc-prometheus': https://github.com/grpc-ecosystem/go-grpc-middleware/tree/main/providers/prometheus.
All series but those of refused fields are there, at zero, from the start. Health checks and reflection are not counted.
"""

from collections.abc import Mapping
from typing import Final, Literal

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series

MethodType = Literal["unary", "bidi_stream"]

CODES: Final[dict[int, str]] = {number: name for name, number in code_pb2.Code.items()}
"""The name of each gRPC code, by its number."""

COUNTED_CODES: Final = {
    "OK": "OK",
    "INVALID_ARGUMENT": "InvalidArgument",
    "UNAUTHENTICATED": "Unauthenticated",
    "PERMISSION_DENIED": "PermissionDenied",
    "NOT_FOUND": "NotFound",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "UNAVAILABLE": "Unavailable",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "CANCELLED": "Canceled",
    "INTERNAL": "Internal",
}
"""The codes that a call of this server can end with, and their `grpc_code`."""
UNIMPLEMENTED: Final = "Unimplemented"
UNKNOWN_METHOD: Final = ("unary", "unknown", "unknown")
"""The labels of calls of methods that there are not: one series, as a caller chooses the path."""

# Seconds. A call waits for one fsync, which takes from below a millisecond to a tenth of a second; a call that waits
# for delivery, or a stream, takes as long as it takes.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)

MAX_FIELDS: Final = 64  # series of fields that are at fault; the contract has fewer

_LABELS: Final = ("grpc_type", "grpc_service", "grpc_method")


class MethodMeter:
    """The metrics of one method."""

    __slots__ = ("_codes", "_seconds", "received", "sent", "started")

    def __init__(self, metrics: "GrpcMetrics", labels: tuple[str, str, str]) -> None:
        self.started = metrics.started.labels(*labels)
        self.received = metrics.received.labels(*labels)
        self.sent = metrics.sent.labels(*labels)
        self._codes = {code: metrics.handled.labels(*labels, name) for code, name in COUNTED_CODES.items()}
        self._seconds = metrics.seconds.labels(*labels)

    def handled(self, code: str, seconds: float) -> None:
        """Count the end of a call, with the name of its gRPC code."""
        self._codes[code].inc()
        self._seconds.observe(seconds)


class GrpcMetrics:
    """The metrics of all methods of a server.

    Args:
        registry: exposes them; a registry of their own by default.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.started = Counter("grpc_server_started", "RPCs started.", _LABELS, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "RPCs completed, by gRPC code.", (*_LABELS, "grpc_code"), registry=registry
        )
        self.received = Counter("grpc_server_msg_received", "Messages received.", _LABELS, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages sent.", _LABELS, registry=registry)
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of RPCs in seconds; of a stream, from its start to its end.",
            _LABELS,
            registry=registry,
            buckets=BUCKETS,
        )
        self.refused_fields = Counter(
            "pointillist_destination_refused_fields",
            "Events and requests that were refused, by the field of the contract that is at fault.",
            ("field",),
            registry=registry,
        )
        self._fields: set[str] = set()
        self.unknown_methods = self.handled.labels(*UNKNOWN_METHOD, UNIMPLEMENTED)
        """Counts calls of methods that there are not."""
        self.callers = Counter(
            "pointillist_destination_caller_calls",
            "RPCs with a valid token, by caller.",
            ("caller",),
            registry=registry,
        )

    def meter(self, method_type: MethodType, service: str, method: str) -> MethodMeter:
        """Return the meter of a method that will be served."""
        return MethodMeter(self, (method_type, service, method))

    def count_refused(self, fields: Mapping[str, int]) -> None:
        """Count refusals by field of the contract, in 64 series at most; beyond them all are `other`."""
        for field, count in fields.items():
            if field not in self._fields and len(self._fields) < MAX_FIELDS - 1:
                self._fields.add(field)
            self.refused_fields.labels(field if field in self._fields else "other").inc(count)

    def name_callers(self, names: list[str]) -> None:
        """Expose a series for each of these callers; only callers that a file names ever have one."""
        for name in names:
            self.callers.labels(name)

    def count_caller(self, name: str) -> None:
        """Count a call of a caller that showed its token."""
        self.callers.labels(name).inc()
