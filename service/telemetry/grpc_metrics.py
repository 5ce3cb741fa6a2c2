"""The metrics of gRPC calls, under the names that dashboards for gRPC servers expect.

Every call passes here twice, so counting is an addition to an integer on the event loop's thread, and the work of
making samples is left to the scrape. All series are there, at zero, from the start. Health checks and reflection are
not counted.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

MethodType = Literal["unary", "bidi_stream"]

CODES: Final = (
    "OK",
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "INTERNAL",
)
# Seconds. A call waits for one fsync, which takes from below a millisecond to a tenth of a second; a call that waits
# for delivery, or a stream, takes as long as it takes.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)

_LABELS: Final = ("grpc_type", "grpc_service", "grpc_method")


class MethodMeter:
    """What is counted of one method."""

    __slots__ = ("_buckets", "_codes", "_seconds", "labels", "received", "sent", "started")

    def __init__(self, method_type: MethodType, service: str, method: str) -> None:
        """Make it, at zero."""
        self.labels = (method_type, service, method)
        self.started = 0
        """Calls that began."""
        self.received = 0
        """Messages that callers sent."""
        self.sent = 0
        """Messages that callers were sent."""
        self._codes = dict.fromkeys(CODES, 0)
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def handled(self, code: str, seconds: float) -> None:
        """Count the end of a call, with the name of its gRPC code."""
        self._codes[code] += 1
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds

    def codes(self) -> Iterator[tuple[str, int]]:
        """How many calls ended with each code."""
        yield from self._codes.items()

    def histogram(self) -> tuple[list[tuple[str, float]], float]:
        """How many calls took no longer than each bound, and how many seconds all of them took."""
        bounds = [*map(str, BUCKETS), "+Inf"]
        return [
            (bound, float(count)) for bound, count in zip(bounds, accumulate(self._buckets), strict=True)
        ], self._seconds


class RpcMetrics(Collector):
    """The metrics of all methods of a server."""

    def __init__(self) -> None:
        self._meters: list[MethodMeter] = []
        self._callers: dict[str, int] = {}

    def meter(self, method_type: MethodType, service: str, method: str) -> MethodMeter:
        """Make the meter of a method that will be served."""
        meter = MethodMeter(method_type, service, method)
        self._meters.append(meter)
        return meter

    def name_callers(self, names: list[str]) -> None:
        """Have a series for each of these callers, at zero; only callers that a file names ever have one."""
        self._callers = dict.fromkeys(names, 0) | self._callers

    def count_caller(self, name: str) -> None:
        """Count a call of a caller that showed its token."""
        self._callers[name] = self._callers.get(name, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Answer the registry."""
        started = CounterMetricFamily("grpc_server_started", "Calls that began.", labels=_LABELS)
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls that ended, by gRPC code.", labels=(*_LABELS, "grpc_code")
        )
        received = CounterMetricFamily("grpc_server_msg_received", "Messages that callers sent.", labels=_LABELS)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages that callers were sent.", labels=_LABELS)
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds",
            "How long calls took, streams from their start to their end.",
            labels=_LABELS,
        )
        for meter in self._meters:
            started.add_metric(meter.labels, meter.started)
            received.add_metric(meter.labels, meter.received)
            sent.add_metric(meter.labels, meter.sent)
            for code, count in meter.codes():
                handled.add_metric((*meter.labels, code), count)
            buckets, total = meter.histogram()
            seconds.add_metric(meter.labels, buckets, total)
        callers = CounterMetricFamily(
            "pointillist_destination_caller_calls", "Calls that showed a right token, by caller.", labels=("caller",)
        )
        for name, count in list(self._callers.items()):
            callers.add_metric((name,), count)
        yield from (started, handled, received, sent, seconds, callers)
