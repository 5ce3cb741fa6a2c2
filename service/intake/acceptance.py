"""Accepts events, the end that every way in shares: parse, validate, filter by integrations, put, count the outcome."""

from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError

from pointillist_destination.v1 import event_pb2
from service.clock import Clock
from service.errors import EventRejectedError
from service.events.integrations import is_sent
from service.events.message import Message, message_of
from service.events.message_id import new_message_id
from service.events.validation import Violation, violations
from service.outbox.base import Attachment, Entry, Sink
from service.telemetry.metrics import EventOutcome, Metrics

TRACK_KEY = b"\x12"  # field 2 of Event, length-delimited
IDENTIFY_KEY = b"\x0a"  # field 1 of Event, length-delimited


class Acceptance:
    """Puts accepted events into the outbox, and counts the outcome of each.

    Args:
        sink: the outbox.
        metrics: counts the outcomes.
        clock: gives the time of acceptance.
    """

    def __init__(self, sink: Sink, metrics: Metrics, clock: Clock) -> None:
        self.sink = sink
        self._metrics = metrics
        self._clock = clock

    def now(self) -> int:
        """Return the time of acceptance of an event that is read now, in milliseconds since the epoch."""
        return round(self._clock.wall() * 1000)

    async def put(self, entry: Entry) -> bool:
        """Store an event; returns False for a duplicate.

        Raises:
            OutboxUnavailableError: as Sink.put does.
        """
        [is_new] = await self.sink.put([entry])
        self.count("accepted" if is_new else "duplicate")
        return is_new

    async def attach(self, entry: Entry) -> Attachment:
        """Store an event whose delivery is awaited; returns its state.

        Raises:
            OutboxUnavailableError: as Sink.attach does.
        """
        attachment = await self.sink.attach(entry)
        self.count("accepted" if attachment.is_new else "duplicate")
        return attachment

    def count(self, outcome: EventOutcome) -> None:
        """Count the outcome of one event."""
        self._metrics.events[outcome].inc()

    def count_batch(self, *, accepted: int, duplicate: int, filtered: int, rejected: int) -> None:
        """Count the outcomes of the events of one batch."""
        self._metrics.count_events(accepted=accepted, duplicate=duplicate, filtered=filtered, rejected=rejected)

    def count_refused(self, fields: Mapping[str, int]) -> None:
        """Count the events of a batch that were rejected, by field of the contract."""
        self._metrics.rpc.count_refused(fields)


def check(message: Message, payload: bytes, found: Sequence[Violation] = ()) -> None:
    """Validate a message.

    Args:
        message: the message.
        payload: its serialised Event.
        found: violations found before.

    Raises:
        EventRejectedError: it breaks a rule.
    """
    broken = [*found, *violations(message, payload)]
    if broken:
        raise EventRejectedError(message.message_id, broken)


def entry_of(payload: bytes, accepted_at: int, traceparent: str) -> Entry | None:
    """Return the outbox's entry of a serialised Event; None where its integrations exclude Pointillist.

    Args:
        payload: the Event.
        accepted_at: milliseconds since the epoch.
        traceparent: of the accepting call's span; "" without one.

    Raises:
        EventRejectedError: it does not parse, or breaks a rule.
    """
    try:
        event = event_pb2.Event.FromString(payload)
    except DecodeError as error:
        raise EventRejectedError("", None) from error
    message = message_of(event)
    if message is None:
        raise EventRejectedError("", [Violation("type", "is not set; an event is either an identify or a track")])
    message_id = message.message_id
    if broken := violations(message, payload):
        raise EventRejectedError(message_id, broken)
    if not is_sent(message.integrations):
        return None
    if not message_id:
        message_id = message.message_id = new_message_id()
        payload = event.SerializeToString()
    return Entry(message_id, payload, accepted_at, traceparent)


def serialise(message: Message) -> bytes:
    """Return the serialised Event that holds a message, without copying the message into one."""
    body = message.SerializeToString()
    length = len(body)
    key = TRACK_KEY if isinstance(message, event_pb2.Track) else IDENTIFY_KEY
    while length > 0x7F:
        key += bytes((length & 0x7F | 0x80,))
        length >>= 7
    return key + bytes((length,)) + body
