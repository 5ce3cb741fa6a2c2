"""The streams and the consumer of an outbox on JetStream: created if missing, otherwise checked.

A stream that an operator created is not changed; it is refused, with the differences, if it would lose, hide or delay
events. A stream that this service created, as its metadata says, follows the settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from service.errors import JetStreamError, OutboxUnusableError
from service.events.message_id import digest
from service.outbox.jetstream.connection import INBOX, Connection

CONSUMER = "relay"
ACK_WAIT = 30  # seconds after which JetStream leases the events of a silent relay to another
MIN_ACK_WAIT = 5  # seconds, of an operator's own consumer: leases are extended about every second
ACK_PENDING = 100_000  # events that are leased or await redelivery; JetStream scans all of them now and then
MIN_ACK_PENDING = 10_000  # of an operator's own consumer: must hold leases and events that await redelivery
MIN_MESSAGE_SIZE = 64 * 1024  # bytes; an event with its headers is smaller
SECOND = 1_000_000_000  # nanoseconds, JetStream's unit
OURS = {"made-by": "pointillist-destination"}
MALFORMED = 400
# Errors that do not pass by themselves: NATS has too little storage to reserve, or too few servers.
PERMANENT = frozenset({10002, 10028, 10047, 10074})
NO_PEERS = 10005  # too few servers are up for the replicas of a stream; that passes by itself
IN_USE = 10058  # another process created the stream meanwhile, with another configuration

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """The wanted configuration of the streams."""

    prefix: str
    replicas: int = 1
    bytes: int | None = None
    """Maximum bytes of pending events, with their headers; None for no bound."""
    events: int | None = None
    duplicate_window: float | None = None
    """Seconds; None for JetStream's default of two minutes."""

    @property
    def events_stream(self) -> str:
        """The stream of pending events."""
        return f"{self.prefix}_EVENTS"

    @property
    def letters_stream(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}_DEAD_LETTERS"

    @property
    def events_subject(self) -> str:
        """The subject of pending events."""
        return f"{self.prefix}.events"

    @property
    def letters_subjects(self) -> str:
        """The subjects of dead letters."""
        return f"{self.prefix}.dead_letters.*"

    def letter_subject(self, message_id: str) -> str:
        """Return the subject of one, by which it is found."""
        return f"{self.prefix}.dead_letters.{digest(message_id).hex()}"

    @property
    def deliveries_subject(self) -> str:
        """The subject on which replicas report deliveries that callers wait for; nothing is stored there."""
        return f"{INBOX}{self.prefix}.deliveries"

    def events_config(self) -> dict[str, Any]:
        """Return the configuration of the stream of pending events, as JetStream's API has it."""
        config = self._config(self.events_stream, self.events_subject, "workqueue")
        config["max_bytes"] = self.bytes if self.bytes is not None else -1
        config["max_msgs"] = self.events if self.events is not None else -1
        if self.duplicate_window is not None:
            config["duplicate_window"] = round(self.duplicate_window * SECOND)
        return config

    def letters_config(self) -> dict[str, Any]:
        """Return the configuration of the stream of dead letters, which the relay keeps within its bound."""
        return self._config(self.letters_stream, self.letters_subjects, "limits")

    def _config(self, name: str, subject: str, retention: str) -> dict[str, Any]:
        return {
            "name": name,
            "subjects": [subject],
            "retention": retention,
            "storage": "file",
            "discard": "new",
            "num_replicas": self.replicas,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "metadata": OURS,
        }

    def consumer_config(self) -> dict[str, Any]:
        """Return the configuration of the consumer that all relays share."""
        return {
            "durable_name": CONSUMER,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT * SECOND,
            "max_deliver": -1,
            "max_ack_pending": ACK_PENDING,
            "replay_policy": "instant",
            "metadata": OURS,
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """The actual limits of the streams and the consumer."""

    events: int | None
    """Maximum number of pending events; None for no bound."""
    bytes: int | None
    ack_wait: float
    """Seconds after which an event of a silent process is leased to another."""


async def ensure(connection: Connection, plan: Plan) -> Limits:
    """Create the streams and the consumer if they are missing, and check them.

    Raises:
        OutboxUnusableError: they cannot be used, or JetStream refuses to create them.
        OutboxUnavailableError: JetStream does not answer now.
    """
    if connection.max_payload < MIN_MESSAGE_SIZE:
        raise OutboxUnusableError(
            f"outbox: NATS accepts messages of up to {connection.max_payload} bytes (max_payload); events need"
            f" {MIN_MESSAGE_SIZE}"
        )
    events = await _stream(connection, plan.events_config())
    await _stream(connection, plan.letters_config())
    consumer = await _consumer(connection, plan)
    return Limits(
        events=_bound(events["max_msgs"]), bytes=_bound(events["max_bytes"]), ack_wait=consumer["ack_wait"] / SECOND
    )


def _bound(value: int) -> int | None:
    return value if value > 0 else None


async def _stream(connection: Connection, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a stream once it exists and is usable."""
    name = wanted["name"]
    found = await _find(connection, f"STREAM.INFO.{name}")
    if found is None:
        found = await _create(connection, f"STREAM.CREATE.{name}", wanted, f"STREAM.INFO.{name}")
        log.info("stream created", stream=name, replicas=wanted["num_replicas"])
    elif _is_ours(found) and any(found.get(key) != value for key, value in _following(wanted)):
        found = await _create(
            connection, f"STREAM.UPDATE.{name}", found | dict(_following(wanted)), f"STREAM.INFO.{name}"
        )
        log.info("stream updated from settings", stream=name)
    if differences := list(stream_differences(found, wanted)):
        raise OutboxUnusableError(
            f"outbox: the stream {name} cannot be used: {'; '.join(differences)}. Change the stream, or set"
            " POINTILLIST_NATS_STREAM to another name, and a suitable stream is created"
        )
    return found


def _following(wanted: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that a stream created by this service follows."""
    for key in ("subjects", "max_bytes", "max_msgs", "num_replicas", "duplicate_window"):
        if key in wanted:
            yield key, wanted[key]


async def _consumer(connection: Connection, plan: Plan) -> dict[str, Any]:
    stream, wanted = plan.events_stream, plan.consumer_config()
    info = f"CONSUMER.INFO.{stream}.{CONSUMER}"
    found = await _find(connection, info)
    if found is None:
        request = {"stream_name": stream, "config": wanted}
        found = await _create(connection, f"CONSUMER.DURABLE.CREATE.{stream}.{CONSUMER}", request, info)
        log.info("consumer created", stream=stream, consumer=CONSUMER)
    if differences := list(consumer_differences(found)):
        raise OutboxUnusableError(
            f"outbox: the consumer {CONSUMER} of the stream {stream} cannot be used: {'; '.join(differences)}."
            " Change it, or delete it while no server runs, and a suitable consumer is created"
        )
    return found


async def _find(connection: Connection, info: str) -> dict[str, Any] | None:
    """Return the configuration of a stream or consumer; None if it does not exist."""
    found = await connection.find(info)
    return None if found is None else found["config"]


async def _create(connection: Connection, method: str, request: dict[str, Any], info: str) -> dict[str, Any]:
    """Create or update a stream or consumer; return its configuration."""
    try:
        config: dict[str, Any] = (await connection.call_api(method, request))["config"]
    except JetStreamError as error:
        if error.number == IN_USE and (found := await _find(connection, info)) is not None:
            return found
        if (error.code == MALFORMED and error.number != NO_PEERS) or error.number in PERMANENT:
            raise OutboxUnusableError(
                f"outbox: JetStream refuses {method}: {error.description} ({error.number}); check"
                " POINTILLIST_NATS_STREAM and POINTILLIST_NATS_REPLICAS, and POINTILLIST_OUTBOX_MAX_BYTES, which NATS"
                " reserves"
            ) from error
        raise
    return config


def _is_ours(config: dict[str, Any]) -> bool:
    return (config.get("metadata") or {}).items() >= OURS.items()


def stream_differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Yield the differences for which a stream cannot be used, one sentence each."""
    for key, why in (
        ("retention", "otherwise events are kept, or dropped, at the wrong time"),
        ("storage", "memory does not survive a restart"),
        ("discard", "otherwise a full stream drops stored events"),
    ):
        if found.get(key) != wanted[key]:
            yield f"{key} is {found.get(key)}, and must be {wanted[key]}: {why}"
    if wanted["subjects"][0] not in (found.get("subjects") or ()):
        yield f"subjects are {found.get('subjects')}, and must include {wanted['subjects'][0]}"
    for key, unset, why in (
        ("max_age", 0, "otherwise old pending events are dropped"),
        ("max_msgs_per_subject", -1, "all events have one subject"),
    ):
        if found.get(key, unset) > 0:
            yield f"{key} is set, and must be {unset}: {why}"
    if 0 < found.get("max_msg_size", -1) < MIN_MESSAGE_SIZE:
        yield f"max_msg_size is {found['max_msg_size']}, and must be -1 or at least {MIN_MESSAGE_SIZE}"
    yield from _forbidden(found, "no_ack", "sealed", "deny_delete", "deny_purge", "mirror")
    if found.get("persist_mode", "default") != "default":
        yield "persist_mode is async, and must be default: otherwise an event is acknowledged before it is on disk"
    window, right = found.get("duplicate_window", 0), wanted.get("duplicate_window")
    if right is not None and window != right:
        yield (
            f"duplicate_window is {window / SECOND:g} s, and POINTILLIST_DUPLICATE_WINDOW is {right / SECOND:g} s:"
            " make them equal, or unset POINTILLIST_DUPLICATE_WINDOW"
        )


def consumer_differences(found: dict[str, Any]) -> Iterator[str]:
    """Yield the differences for which a consumer cannot be used, one sentence each."""
    for key, right, why in (
        ("ack_policy", "explicit", "each event is settled separately"),
        ("deliver_policy", "all", "otherwise events from before it are never relayed"),
        ("replay_policy", "instant", "otherwise a backlog drains no faster than it arrived"),
        ("max_deliver", -1, "otherwise an event is lost after that many deliveries"),
    ):
        if found.get(key) != right:
            yield f"{key} is {found.get(key)}, and must be {right}: {why}"
    pending = found.get("max_ack_pending", -1)
    if 0 <= pending < MIN_ACK_PENDING:
        yield (
            f"max_ack_pending is {pending}, and must be -1 or at least {MIN_ACK_PENDING}: events that await"
            " redelivery count, and at the limit nothing is delivered"
        )
    wait = found.get("ack_wait", 0) / SECOND
    if wait < MIN_ACK_WAIT:
        yield f"ack_wait is {wait:g} s, and must be at least {MIN_ACK_WAIT} s: otherwise leased events come twice"
    yield from _forbidden(
        found, "deliver_subject", "filter_subject", "filter_subjects", "backoff", "headers_only", "inactive_threshold"
    )
    yield from _forbidden(found, "max_batch", "max_expires", "max_bytes", "rate_limit_bps", "pause_until")


def _forbidden(found: dict[str, Any], *keys: str) -> Iterator[str]:
    for key in keys:
        if found.get(key):
            yield f"{key} is set, and must not be"
