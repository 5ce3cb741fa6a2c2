"""What operators see of a running service: log lines on standard error, and metrics for Prometheus.

Code that logs says `structlog.get_logger()`; code that counts is given a `Metrics`. Label values are closed sets, so
that no caller and no answer can make the number of time series grow, and each series is there, at zero, from the start.
"""

import errno
import json
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TextIO, get_args
from wsgiref.simple_server import WSGIRequestHandler, make_server

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from structlog.types import EventDict, Processor, WrappedLogger

from service.config.address import Listen
from service.errors import SettingsError
from service.telemetry.grpc_metrics import RpcMetrics

EventOutcome = Literal["accepted", "duplicate", "filtered", "rejected", "validated"]
AnswerClass = Literal["2xx", "4xx", "429", "5xx", "timeout", "refused", "reset", "dns", "other"]
DeadLetterReason = Literal["refused", "max_age"]
PauseReason = Literal["setup", "refusals", "outage", "dead_letters_full"]
RelayState = Literal["flowing", "probing", "paused"]
ReloadOutcome = Literal["taken_up", "refused"]
Loop = Literal["relay", "writer", "health"]

_ANSWER_CLASSES: Final[dict[str, AnswerClass]] = {name: name for name in get_args(AnswerClass)}

# Seconds. Loopback answers within the first buckets; the default request timeout of 10 s has one of its own.
DELIVERY_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# POSTs. The most that a week of failures takes, at one every five minutes, is some 2,000.
ATTEMPT_BUCKETS: Final = (1, 2, 3, 5, 10, 20, 100, 1000)
STOP_POLL_INTERVAL: Final = 0.1  # seconds between two looks at whether the metrics server shall stop


def configure_logging(level: str, log_format: str | None, stream: TextIO | None = None) -> None:
    """Send every log line, those of libraries too, to one stream in one form.

    A line has `timestamp` (ISO 8601, UTC), `level`, `event` and whatever fields were given; an exception is the text of
    its traceback, without local variables, as these may hold the token. Libraries are heard from `warning` up, whatever
    `level` is, because their debug lines repeat headers.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json`, `text`, or `None` for text on a terminal and JSON elsewhere.
        stream: where to write; standard error by default.
    """
    target = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    as_text = log_format == "text" or (log_format is None and target.isatty())
    prepare: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor]
    if as_text:
        console = structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        render = [console]
    else:
        render = [structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=[*prepare, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        # A cached logger would go on writing to the stream of an earlier call.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*prepare, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(capture=True)


def set_log_level(level: str) -> None:
    """Leave out what is less serious than `level` from now on; libraries stay at `warning` and above."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(threshold))
    logging.getLogger().setLevel(max(threshold, logging.WARNING))


def _render_json(_logger: WrappedLogger, _method: str, fields: EventDict) -> str:
    """Write one line of JSON, also where orjson alone would refuse: a log line should not be what fails."""
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a lone surrogate, an integer beyond 64 bits
        return json.dumps(fields, default=repr, skipkeys=True)


class FollowedCounter(Collector):
    """A counter that somebody else counts: when Prometheus reads it, it asks a function."""

    def __init__(self, name: str, text: str) -> None:
        """Make it, at zero.

        Args:
            name: its name, without `_total`.
            text: what it counts.
        """
        self._name, self._text = name, text
        self._function: Callable[[], float] = lambda: 0

    def set_function(self, function: Callable[[], float]) -> None:
        """Ask this function from now on; what it returns never falls."""
        self._function = function

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Answer the registry."""
        yield CounterMetricFamily(self._name, self._text, self._function())


class Metrics:
    """All metrics of one server, in a registry of their own, so that a test can have as many servers as it likes.

    Counters with a label are dictionaries from its values to ready counters: `metrics.events["accepted"].inc()` looks
    nothing up but a dictionary key. Gauges are set, or told by `set_function` what to call when Prometheus reads; such
    a function runs on a thread of the metrics server, so it may only read a number.
    """

    def __init__(self) -> None:
        """Make every series, at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.events: dict[EventOutcome, Counter] = self._counters(
            "events_total", "Events that callers sent, by what became of them.", "outcome", EventOutcome
        )
        self.deliveries: dict[AnswerClass, Counter] = self._counters(
            "deliveries_total", "POSTs to Pointillist, by how they were answered.", "answer", AnswerClass
        )
        self.delivery_seconds = Histogram(
            "pointillist_destination_delivery_seconds",
            "How long a POST to Pointillist took.",
            buckets=DELIVERY_BUCKETS,
            registry=self.registry,
        )
        # Not a counter of retries, to which many events with two POSTs and a few with hundreds would look the same.
        self.attempts = Histogram(
            "pointillist_destination_attempts",
            "POSTs that an event needed until it was delivered or given up; anything above 1 is what failures cost.",
            buckets=ATTEMPT_BUCKETS,
            registry=self.registry,
        )
        self.ready = self._gauge("ready", "1 while new events can be accepted, else 0.")
        self.outbox_events = self._gauge("outbox_events", "Events in the outbox that are not settled.")
        self.outbox_bytes = self._gauge(
            "outbox_bytes", "Bytes of the events in the outbox, as they were sent; on NATS, as its stream keeps them."
        )
        self.outbox_oldest_age = self._gauge(
            "outbox_oldest_age_seconds", "Age of the oldest event that is not settled; 0 when there is none."
        )
        self.outbox_commits = self._followed(
            "outbox_commits", "Commits of the outbox, each with one fsync; on NATS, puts that its stream acknowledged."
        )
        self.outbox_committed_events = self._followed(
            "outbox_committed_events", "Events that those commits put on disk."
        )
        self.duplicate_evictions = self._followed(
            "duplicate_evictions",
            "Message ids forgotten before the duplicate window was over, for lack of room; NATS does not tell.",
        )
        self.dead_letters = self._gauge("dead_letters", "Dead letters that are kept.")
        # Not dead_letters_total: OpenMetrics gives a counter and a gauge one namespace, without the suffix.
        self.dead_lettered: dict[DeadLetterReason, Counter] = self._counters(
            "dead_lettered_total", "Events that became dead letters, by why.", "reason", DeadLetterReason
        )
        self.concurrency_limit = self._gauge(
            "concurrency_limit", "POSTs that the relay allows itself at once; 0 while it is paused."
        )
        self.in_flight = self._gauge("in_flight", "POSTs that wait for an answer.")
        self.relay_workers = self._gauge(
            "relay_workers", "Processes that send records besides the server; 0 where it does so itself."
        )
        self.relay_worker_restarts = self._followed(
            "relay_worker_restarts", "Relay workers that ended and were replaced."
        )
        self.pauses: dict[PauseReason, Counter] = self._counters(
            "pauses_total", "Times the relay left off flowing, by why.", "reason", PauseReason
        )
        self.mapping_reloads: dict[ReloadOutcome, Counter] = self._counters(
            "mapping_reloads_total",
            "Times the mapping file was read again, by what came of it.",
            "outcome",
            ReloadOutcome,
        )
        self._loops = Counter(
            "pointillist_destination_heartbeat_total",
            "Turns of each loop; each rises at least once a second unless it is stuck.",
            ["loop"],
            registry=self.registry,
        )
        self.heartbeats: dict[Loop, Counter] = {loop: self._loops.labels(loop) for loop in get_args(Loop)}
        self.rpc = RpcMetrics()
        self.registry.register(self.rpc)
        self.relay_state = Enum(
            "pointillist_destination_relay_state",
            "Whether the relay delivers, probes or is paused.",
            states=get_args(RelayState),
            registry=self.registry,
        )

    def leave_out(self, loop: Loop) -> None:
        """Show no heartbeat of a loop that this server does not have: one that stands still means that it is stuck."""
        self._loops.remove(loop)

    def count_delivery(self, reason: str, seconds: float) -> None:
        """Count one POST that was answered or failed, and how long it took, by the reason of its retry decision."""
        self.deliveries[_ANSWER_CLASSES.get(reason) or answer_class(reason)].inc()
        self.delivery_seconds.observe(seconds)

    def count_dead_letter(self, reason: str) -> None:
        """Count an event that became a dead letter: `max_age`, or the status with which Pointillist refused it."""
        self.dead_lettered["max_age" if reason == "max_age" else "refused"].inc()

    def count_events(self, **counts: int) -> None:
        """Count events by outcome, such as `accepted=98, rejected=2`."""
        for outcome, count in counts.items():
            if count:
                self.events[outcome].inc(count)  # type: ignore[index]  # the keyword is an EventOutcome

    def _followed(self, name: str, text: str) -> "FollowedCounter":
        counter = FollowedCounter(f"pointillist_destination_{name}", text)
        self.registry.register(counter)
        return counter

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"pointillist_destination_{name}", text, registry=self.registry)

    def _counters(self, name: str, text: str, label: str, values: Any) -> dict[Any, Counter]:
        """Make a counter with one label, and bind a child to each value of a `Literal`."""
        counter = Counter(f"pointillist_destination_{name}", text, [label], registry=self.registry)
        return {value: counter.labels(value) for value in get_args(values)}


def answer_class(reason: str) -> AnswerClass:
    """Put the reason of a retry decision (`2xx`, another status in digits, or a kind of failure) into its class."""
    by_first_digit: dict[str, AnswerClass] = {"2": "2xx", "4": "4xx", "5": "5xx"}
    if len(reason) == 3 and reason != "429" and reason[0] in by_first_digit:
        return by_first_digit[reason[0]]
    if reason == "truncated":  # to an operator the same as a reset: the connection broke before an answer
        return "reset"
    return _ANSWER_CLASSES.get(reason, "other")


class MetricsServer:
    """A running `/metrics`, or none: `stop` is right for both."""

    def __init__(self, server: ThreadingWSGIServer | None, listen: Listen | None) -> None:
        """Serve on a thread of its own; `listen` then has the port that was really bound."""
        self.listen = listen
        self._server = server
        self._thread: threading.Thread | None = None
        if server is not None:
            self._thread = threading.Thread(
                target=server.serve_forever, args=(STOP_POLL_INTERVAL,), name="metrics", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()


class _QuietHandler(WSGIRequestHandler):
    """Answers without a line on standard error for each request."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    """prometheus-client's server, but for two things that its `start_http_server` gives no way to change."""

    # With it two servers would share one port without a word, and Prometheus would see now one, now the other.
    allow_reuse_port = False

    def server_bind(self) -> None:
        """Bind without asking DNS for our own name, which takes seconds where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the signature is socketserver's
        """Log a scrape that broke off; the base class would print a traceback that is no log line."""
        structlog.get_logger().debug("metrics request failed", exc_info=True)


class _ServerOverIPv6(_Server):
    address_family = socket.AF_INET6


def start_metrics_server(listen: Listen | None, metrics: Metrics) -> MetricsServer:
    """Serve the metrics in Prometheus' format at `/metrics`; with no address, serve nothing.

    Raises:
        SettingsError: when the address cannot be listened on.
    """
    if listen is None:
        return MetricsServer(None, None)
    server_class = _ServerOverIPv6 if ":" in listen.host else _Server
    application = make_wsgi_app(metrics.registry)
    try:
        server = make_server(listen.host, listen.port, application, server_class, handler_class=_QuietHandler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"POINTILLIST_METRICS_LISTEN: {listen} is in use") from None
        raise SettingsError(f"POINTILLIST_METRICS_LISTEN: cannot listen on {listen}: {error.strerror}") from None
    return MetricsServer(server, Listen(listen.host, server.server_port))
