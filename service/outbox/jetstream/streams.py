"""The streams and the consumer of an outbox on JetStream: made where they are missing, else looked at whether they do.

What an operator made stays as it is, and where it would lose, hide or hold up events it is refused with what differs.
What we made, which its metadata say, follows the settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from service.errors import JetStreamError, OutboxUnusableError
from service.outbox.jetstream.connection import Connection

CONSUMER = "relay"
ACK_WAIT = 30  # seconds without a word from a relay, after which JetStream gives its events to another
MIN_ACK_WAIT = 5  # of an operator's own consumer: what is in work is told of each second or so
ACK_PENDING = 100_000  # events that are leased or put back at a time; JetStream walks through all of them now and then
MIN_ACK_PENDING = 10_000  # of an operator's own consumer: leases and what is put back have to fit
MIN_MESSAGE_SIZE = 64 * 1024  # bytes; an event with its headers has less
SECOND = 1_000_000_000  # nanoseconds, in which JetStream counts
OURS = {"made-by": "pointillist-destination"}
NOT_FOUND = 404
MALFORMED = 400
# NATS has less left to set aside than a stream may grow to, or fewer servers; what does not mend by itself.
NOT_TO_BE_HAD = frozenset({10002, 10028, 10047, 10074})
NO_PEERS = 10005  # too few servers are up to keep a stream on so many; that mends itself
IN_USE = 10058  # somebody else made the stream meanwhile, otherwise

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the streams shall be."""

    prefix: str
    replicas: int = 1
    bytes: int | None = None
    """Bytes that the waiting events may take, with their headers; None for no bound."""
    events: int | None = None
    duplicate_window: float | None = None
    """Seconds; None leaves it to JetStream, which takes two minutes."""

    @property
    def events_stream(self) -> str:
        """The stream of waiting events."""
        return f"{self.prefix}_EVENTS"

    @property
    def letters_stream(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}_DEAD_LETTERS"

    @property
    def events_subject(self) -> str:
        """Where waiting events are published."""
        return f"{self.prefix}.events"

    @property
    def letters_subject(self) -> str:
        """Where dead letters are published."""
        return f"{self.prefix}.dead_letters"

    def events_config(self) -> dict[str, Any]:
        """The stream of waiting events, in JetStream's own words."""
        config = self._config(self.events_stream, self.events_subject, "workqueue")
        config["max_bytes"] = self.bytes if self.bytes is not None else -1
        config["max_msgs"] = self.events if self.events is not None else -1
        if self.duplicate_window is not None:
            config["duplicate_window"] = round(self.duplicate_window * SECOND)
        return config

    def letters_config(self) -> dict[str, Any]:
        """The stream of dead letters: its bound, POINTILLIST_DEAD_LETTER_MAX_EVENTS, is kept by the relay."""
        return self._config(self.letters_stream, self.letters_subject, "limits")

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
        """The consumer that all relays share."""
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
class Adopted:
    """What the streams are."""

    events: int | None
    """How many events may wait; None for no bound."""
    bytes: int | None
    ack_wait: float
    """Seconds without a word from us, after which an event is given to another relay."""


async def ensure(connection: Connection, plan: Plan) -> Adopted:
    """Make what is missing, and look whether what there is will do.

    Raises:
        OutboxUnusableError: it will not do, or JetStream refuses to make it so.
        OutboxUnavailableError: JetStream cannot be asked now.
    """
    if connection.payload_most < MIN_MESSAGE_SIZE:
        raise OutboxUnusableError(
            f"outbox: NATS takes messages of {connection.payload_most} bytes at most (max_payload); events need"
            f" {MIN_MESSAGE_SIZE}"
        )
    events = await _stream(connection, plan.events_config())
    await _stream(connection, plan.letters_config())
    consumer = await _consumer(connection, plan)
    return Adopted(
        events=_bound(events["max_msgs"]), bytes=_bound(events["max_bytes"]), ack_wait=consumer["ack_wait"] / SECOND
    )


def _bound(most: int) -> int | None:
    return most if most > 0 else None


async def _stream(connection: Connection, wanted: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a stream, once it is there and will do."""
    name = wanted["name"]
    found = await _look(connection, f"STREAM.INFO.{name}")
    if found is None:
        found = await _make(connection, f"STREAM.CREATE.{name}", wanted, f"STREAM.INFO.{name}")
        log.info("stream made", stream=name, replicas=wanted["num_replicas"])
    elif _is_ours(found) and any(found.get(key) != value for key, value in _following(wanted)):
        found = await _make(
            connection, f"STREAM.UPDATE.{name}", found | dict(_following(wanted)), f"STREAM.INFO.{name}"
        )
        log.info("stream follows the settings", stream=name)
    if differences := list(stream_differences(found, wanted)):
        raise OutboxUnusableError(
            f"outbox: the stream {name} will not do: {'; '.join(differences)}. Change the stream, or set"
            " POINTILLIST_NATS_STREAM to another name, and it is made as it has to be"
        )
    return found


def _following(wanted: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What of a stream that we made follows the settings."""
    for key in ("max_bytes", "max_msgs", "num_replicas", "duplicate_window"):
        if key in wanted:
            yield key, wanted[key]


async def _consumer(connection: Connection, plan: Plan) -> dict[str, Any]:
    stream, wanted = plan.events_stream, plan.consumer_config()
    place = f"CONSUMER.INFO.{stream}.{CONSUMER}"
    found = await _look(connection, place)
    if found is None:
        question = {"stream_name": stream, "config": wanted}
        found = await _make(connection, f"CONSUMER.DURABLE.CREATE.{stream}.{CONSUMER}", question, place)
        log.info("consumer made", stream=stream, consumer=CONSUMER)
    if differences := list(consumer_differences(found)):
        raise OutboxUnusableError(
            f"outbox: the consumer {CONSUMER} of the stream {stream} will not do: {'; '.join(differences)}. Change it,"
            " or delete it while no server runs, and it is made as it has to be"
        )
    return found


async def _look(connection: Connection, place: str) -> dict[str, Any] | None:
    """The configuration of what is there; None where nothing is."""
    try:
        config: dict[str, Any] = (await connection.ask(place))["config"]
    except JetStreamError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    return config


async def _make(connection: Connection, what: str, question: dict[str, Any], place: str) -> dict[str, Any]:
    """Make or change something; gives its configuration."""
    try:
        config: dict[str, Any] = (await connection.ask(what, question))["config"]
    except JetStreamError as error:
        if error.number == IN_USE and (found := await _look(connection, place)) is not None:
            return found
        if (error.code == MALFORMED and error.number != NO_PEERS) or error.number in NOT_TO_BE_HAD:
            raise OutboxUnusableError(
                f"outbox: JetStream refuses {what}: {error.description} ({error.number}); check"
                " POINTILLIST_NATS_STREAM and POINTILLIST_NATS_REPLICAS, and POINTILLIST_OUTBOX_MAX_BYTES, which NATS"
                " sets aside"
            ) from error
        raise
    return config


def _is_ours(config: dict[str, Any]) -> bool:
    return (config.get("metadata") or {}).items() >= OURS.items()


def stream_differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """What keeps a stream from being an outbox, a sentence each."""
    for key, why in (
        ("retention", "else events are kept, or dropped, at the wrong time"),
        ("storage", "memory does not outlive a restart"),
        ("discard", "else a full stream drops what it holds"),
    ):
        if found.get(key) != wanted[key]:
            yield f"{key} is {found.get(key)}, and has to be {wanted[key]}: {why}"
    if wanted["subjects"][0] not in (found.get("subjects") or ()):
        yield f"subjects are {found.get('subjects')}, and have to hold {wanted['subjects'][0]}"
    for key, unset, why in (
        ("max_age", 0, "else events that wait long are dropped"),
        ("max_msgs_per_subject", -1, "all events have one subject"),
    ):
        if found.get(key, unset) > 0:
            yield f"{key} is set, and has to be {unset}: {why}"
    if 0 < found.get("max_msg_size", -1) < MIN_MESSAGE_SIZE:
        yield f"max_msg_size is {found['max_msg_size']}, and has to be -1 or at least {MIN_MESSAGE_SIZE}"
    yield from _set_where_it_must_not(found, "no_ack", "sealed", "deny_delete", "deny_purge", "mirror")
    if found.get("persist_mode", "default") != "default":
        yield "persist_mode is async, and has to be default: else an event is acknowledged before it is on disk"
    window, right = found.get("duplicate_window", 0), wanted.get("duplicate_window")
    if right is not None and window != right:
        yield (
            f"duplicate_window is {window / SECOND:g} s, and POINTILLIST_DUPLICATE_WINDOW is {right / SECOND:g} s:"
            " make them the same, or unset POINTILLIST_DUPLICATE_WINDOW"
        )


def consumer_differences(found: dict[str, Any]) -> Iterator[str]:
    """What keeps a consumer from being the relays', a sentence each."""
    for key, right, why in (
        ("ack_policy", "explicit", "each event is settled by itself"),
        ("deliver_policy", "all", "else events that came before it are never relayed"),
        ("replay_policy", "instant", "else a backlog drains no faster than it came"),
        ("max_deliver", -1, "else an event is given up after so many tries, and is lost"),
    ):
        if found.get(key) != right:
            yield f"{key} is {found.get(key)}, and has to be {right}: {why}"
    pending = found.get("max_ack_pending", -1)
    if 0 <= pending < MIN_ACK_PENDING:
        yield (
            f"max_ack_pending is {pending}, and has to be -1 or at least {MIN_ACK_PENDING}: events that are put back"
            " for later count, and at the limit nothing is delivered"
        )
    wait = found.get("ack_wait", 0) / SECOND
    if wait < MIN_ACK_WAIT:
        yield f"ack_wait is {wait:g} s, and has to be at least {MIN_ACK_WAIT} s: else events in work come twice"
    yield from _set_where_it_must_not(
        found, "deliver_subject", "filter_subject", "filter_subjects", "backoff", "headers_only", "inactive_threshold"
    )
    yield from _set_where_it_must_not(found, "max_batch", "max_expires", "max_bytes", "rate_limit_bps", "pause_until")


def _set_where_it_must_not(found: dict[str, Any], *keys: str) -> Iterator[str]:
    for key in keys:
        if found.get(key):
            yield f"{key} is set, and must not be"
