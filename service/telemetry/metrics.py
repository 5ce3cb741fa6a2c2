"""Metrics for Prometheus.

Label values are closed sets, so that no caller and no answer can make the number of time series grow, and each series
is there, at zero, from the start.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.telemetry.grpc_metrics import GrpcMetrics

EventOutcome = Literal["accepted", "duplicate", "filtered", "rejected", "validated"]
AnswerClass = Literal["2xx", "4xx", "429", "5xx", "timeout", "refused", "reset", "dns", "other"]
DeadLetterReason = Literal["refused", "max_age", "unreadable"]
PauseReason = Literal["setup", "refusals", "outage", "dead_letters_full"]
RelayState = Literal["flowing", "probing", "paused"]
ReloadOutcome = Literal["taken_up", "refused"]
Loop = Literal["relay", "writer", "health"]
ListenerName = Literal["grpc", "health"]

_DEAD_LETTER_REASONS: Final[dict[str, DeadLetterReason]] = {name: name for name in get_args(DeadLetterReason)}
_ANSWER_CLASSES: Final[dict[str, AnswerClass]] = {name: name for name in get_args(AnswerClass)}

# Seconds. Loopback answers within the first buckets; the default request timeout of 10 s has one of its own.
DELIVERY_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# POSTs. The most that a week of failures takes, at one every five minutes, is some 2,000.
ATTEMPT_BUCKETS: Final = (1, 2, 3, 5, 10, 20, 100, 1000)


class FollowedCounter(Collector):
    """A counter whose value a function returns at each scrape."""

    def __init__(self, name: str, text: str) -> None:
        """Create the counter, at zero.

        Args:
            name: its name, without `_total`.
            text: its HELP.
        """
        self._name, self._text = name, text
        self._function: Callable[[], float] = lambda: 0

    def set_function(self, function: Callable[[], float]) -> None:
        """Take the value from this function; it never decreases."""
        self._function = function

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the current value to the registry."""
        yield CounterMetricFamily(self._name, self._text, self._function())


class Metrics:
    """All metrics of one server, in a registry of their own, so that a test can have as many servers as it likes.

    Counters with a label are dictionaries from its values to ready counters: `metrics.events["accepted"].inc()` looks
    nothing up but a dictionary key. Gauges are set, or take their value from a function at each scrape; such a function
    runs on a thread of the metrics server, so it may only read a number.
    """

    def __init__(self) -> None:
        """Create every series, at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.events: dict[EventOutcome, Counter] = self._counters(
            "events_total", "Events received, by outcome.", "outcome", EventOutcome
        )
        self.deliveries: dict[AnswerClass, Counter] = self._counters(
            "deliveries_total", "POSTs to Pointillist, by answer.", "answer", AnswerClass
        )
        self.delivery_seconds = Histogram(
            "pointillist_destination_delivery_seconds",
            "Duration of POSTs to Pointillist in seconds.",
            buckets=DELIVERY_BUCKETS,
            registry=self.registry,
        )
        # Not a counter of retries, to which many events with two POSTs and a few with hundreds would look the same.
        self.attempts = Histogram(
            "pointillist_destination_attempts",
            "POSTs per event until it was delivered or given up; values above 1 are retries.",
            buckets=ATTEMPT_BUCKETS,
            registry=self.registry,
        )
        self.ready = self._gauge("ready", "1 while new events are accepted, 0 otherwise.")
        self._listening = Gauge(
            "pointillist_destination_listening",
            "1 while a gRPC listener takes calls, 0 otherwise.",
            ["listener"],
            registry=self.registry,
        )
        self.listener_restarts: dict[ListenerName, Counter] = self._counters(
            "listener_restarts_total",
            "gRPC servers that ended by themselves and were made again, by listener.",
            "listener",
            ListenerName,
        )
        self.call_usage = self._gauge(
            "call_usage_ratio", "Calls of EventService under way as a share of POINTILLIST_MAX_CALLS."
        )
        self.descriptor_usage = self._gauge(
            "descriptor_usage_ratio", "Open descriptors as a share of their limit; at 1, connections are refused."
        )
        self.batch_bytes = self._gauge(
            "batch_bytes", "Requests and answers of BatchSend in memory, in bytes; above 64 MiB streams wait."
        )
        self.batch_streams_waiting = self._gauge(
            "batch_streams_waiting", "Streams of BatchSend that wait for a part of those 64 MiB."
        )
        self.unread_streams = self._gauge(
            "unread_streams", "Streams of BatchSend whose callers have not read an answer for 30 s."
        )
        self.outbox_events = self._gauge("outbox_events", "Pending events in the outbox.")
        self.outbox_bytes = self._gauge(
            "outbox_bytes", "Serialized size of the pending events in bytes; on NATS, the size of its stream."
        )
        self.outbox_oldest_age = self._gauge(
            "outbox_oldest_age_seconds", "Age of the oldest pending event in seconds; 0 if there is none."
        )
        self.outbox_commits = self._followed(
            "outbox_commits", "Group commits of the outbox, one fsync each; on NATS, acknowledged puts."
        )
        self.outbox_committed_events = self._followed("outbox_committed_events", "Events stored by those commits.")
        self.duplicate_evictions = self._followed(
            "duplicate_evictions",
            "Message IDs evicted from the duplicate window before their time; not reported by NATS.",
        )
        self.parked_settlements = self._followed(
            "parked_settlements", "Settlements that could not be stored by themselves; their events wait for a restart."
        )
        self.outbox_log_bytes = self._gauge(
            "outbox_log_bytes", "Size of the write-ahead log of the outbox file in bytes; it rests at up to 64 MiB."
        )
        self.outbox_incomplete_checkpoints = self._followed(
            "outbox_incomplete_checkpoints", "Checkpoints of the outbox file that failed, or left a part of its log."
        )
        self.unreadable_events = self._gauge(
            "unreadable_events",
            "Pending events that could not be read since start, as a page of the outbox file is damaged.",
        )
        self.dead_letters = self._gauge("dead_letters", "Dead letters in the outbox.")
        # Not dead_letters_total: OpenMetrics gives a counter and a gauge one namespace, without the suffix.
        self.dead_lettered: dict[DeadLetterReason, Counter] = self._counters(
            "dead_lettered_total", "Events that became dead letters, by reason.", "reason", DeadLetterReason
        )
        self.concurrency_limit = self._gauge(
            "concurrency_limit", "Maximum number of POSTs in flight; 0 while the relay is paused."
        )
        self.in_flight = self._gauge("in_flight", "POSTs in flight.")
        self.relay_workers = self._gauge(
            "relay_workers", "Running relay worker processes; 0 if the server delivers by itself."
        )
        self.relay_worker_restarts = self._followed(
            "relay_worker_restarts", "Relay workers that exited and were replaced."
        )
        self.pauses: dict[PauseReason, Counter] = self._counters(
            "pauses_total", "Number of times the relay stopped delivering, by reason.", "reason", PauseReason
        )
        self.mapping_reloads: dict[ReloadOutcome, Counter] = self._counters(
            "mapping_reloads_total",
            "Reloads of the mapping file, by outcome.",
            "outcome",
            ReloadOutcome,
        )
        self.log_lines_dropped = self._followed(
            "log_lines_dropped", "Log lines that could not be written: the stream failed, or its reader is too slow."
        )
        self._loops = Counter(
            "pointillist_destination_heartbeat_total",
            "Iterations of each loop; increases at least once a second unless the loop is stuck.",
            ["loop"],
            registry=self.registry,
        )
        self.heartbeats: dict[Loop, Counter] = {loop: self._loops.labels(loop) for loop in get_args(Loop)}
        self.rpc = GrpcMetrics(self.registry)
        self.relay_state = Enum(
            "pointillist_destination_relay_state",
            "State of the relay: flowing, probing or paused.",
            states=get_args(RelayState),
            registry=self.registry,
        )

    def follow_listener(self, name: ListenerName, is_listening: Callable[[], bool]) -> None:
        """Expose whether a listener takes calls; a listener that this server does not have has no series."""
        self._listening.labels(name).set_function(is_listening)

    def leave_out(self, loop: Loop) -> None:
        """Remove the heartbeat of a loop that this server does not run: a constant one would mean that it is stuck."""
        self._loops.remove(loop)

    def count_delivery(self, reason: str, seconds: float) -> None:
        """Count one POST by the reason of its retry decision, and observe its duration in seconds."""
        self.deliveries[_ANSWER_CLASSES.get(reason) or answer_class(reason)].inc()
        self.delivery_seconds.observe(seconds)

    def count_dead_letter(self, reason: str) -> None:
        """Count a dead letter: `max_age`, `unreadable`, or the status with which Pointillist refused the event."""
        self.dead_lettered[_DEAD_LETTER_REASONS.get(reason, "refused")].inc()

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
        """Create a counter with one label, and bind a child to each value of a `Literal`."""
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
