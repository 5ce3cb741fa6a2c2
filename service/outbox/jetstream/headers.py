"""What travels beside an event on JetStream: how an entry, and a dead letter, becomes headers, and what is read back.

The body of every message is the serialised Event, as it is everywhere.
"""

from typing import NamedTuple

from pointillist_destination.v1 import event_pb2
from service import percent
from service.outbox.base import DeadLetter, DeadLetterFilter, Entry, Refusal, Stored
from service.outbox.jetstream.connection import Received

DUPLICATE_ID = "Nats-Msg-Id"
"""JetStream's own: a second message with it, within the window, is not stored."""
MESSAGE_ID = "Pointillist-Message-Id"
"""The event's message_id, where DUPLICATE_ID is something else; percent-encoded."""
ACCEPTED_AT = "Pointillist-Accepted-At"
QUEUED_AT = "Pointillist-Queued-At"
ANSWER_TO = "Pointillist-Answer-To"
"""Where to tell of the delivery, because a caller waits for it."""
TRACEPARENT = "traceparent"
REASON = "Pointillist-Reason"
STATUS = "Pointillist-Status"
DETAIL = "Pointillist-Detail"
ATTEMPTS = "Pointillist-Attempts"
FIRST_ATTEMPT_AT = "Pointillist-First-Attempt-At"
LAST_ATTEMPT_AT = "Pointillist-Last-Attempt-At"

ACK_TOKENS = 9  # of the reply subject $JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE…; with a domain it has more (ADR-15)
NANOSECONDS = 1_000_000  # in a millisecond
MAX_DIGITS = 16  # fewer than this are milliseconds of a year that has a date


class Delivery(NamedTuple):
    """What JetStream says of a message by the subject on which it wants the acknowledgement."""

    id: int
    """Its place in the stream."""
    deliveries: int
    """How many times it was delivered, this one included."""
    stored_at: int
    """Milliseconds since the epoch, by the clock of NATS."""


def delivery_of(reply: str) -> Delivery:
    """Read the subject of an acknowledgement."""
    tokens = reply.split(".")
    deliveries, id_, _, stored_at = tokens[4:8] if len(tokens) == ACK_TOKENS else tokens[6:10]
    return Delivery(int(id_), int(deliveries), int(stored_at) // NANOSECONDS)


def entry_headers(entry: Entry, queued_at: int, answer_to: str) -> dict[str, str]:
    """The headers of an event that is put.

    Args:
        entry: the event.
        queued_at: milliseconds since the epoch.
        answer_to: the subject on which we hear of deliveries that our callers wait for.
    """
    headers = {
        DUPLICATE_ID: percent.encode(entry.message_id),
        ACCEPTED_AT: str(entry.accepted_at),
        QUEUED_AT: str(queued_at),
    }
    if entry.is_awaited:
        headers[ANSWER_TO] = answer_to
    if entry.traceparent:
        headers[TRACEPARENT] = percent.encode(entry.traceparent)
    return headers


def replay_headers(letter: DeadLetter, queued_at: int) -> dict[str, str]:
    """The headers of an event that is replayed; its message_id is in the window already, so it has another id there.

    That begins as no encoded message_id can: one that some caller had chosen would have the event taken for stored.
    """
    headers = {
        DUPLICATE_ID: f"%replay-{letter.id}-{letter.last_attempt_at}",
        MESSAGE_ID: percent.encode(letter.message_id),
        ACCEPTED_AT: str(letter.accepted_at),
        QUEUED_AT: str(queued_at),
    }
    if letter.traceparent:
        headers[TRACEPARENT] = percent.encode(letter.traceparent)
    return headers


def stored_of(received: Received, delivery: Delivery) -> Stored:
    """An event that was delivered to us.

    JetStream counts deliveries, and not tries: a lease that was lost or given back counts as one, too. The moment of
    the first it does not keep: that the event was queued is the nearest to it.
    """
    headers = received.headers or {}
    queued_at = whole(headers, QUEUED_AT, delivery.stored_at)
    return Stored(
        id=delivery.id,
        message_id=percent.decode(headers.get(MESSAGE_ID) or headers.get(DUPLICATE_ID) or f"jetstream-{delivery.id}"),
        payload=received.data,
        accepted_at=whole(headers, ACCEPTED_AT, delivery.stored_at),
        queued_at=queued_at,
        attempts=delivery.deliveries - 1,
        first_attempt_at=queued_at if delivery.deliveries > 1 else None,
        traceparent=percent.decode(headers.get(TRACEPARENT, "")),
    )


def letter_headers(stored: Stored, refusal: Refusal, now: int) -> dict[str, str]:
    """The headers of a dead letter; written twice, because of a crash in between, it is kept once.

    Args:
        stored: the event that is given up.
        refusal: why.
        now: milliseconds since the epoch.
    """
    headers = {
        DUPLICATE_ID: f"{stored.id}-{stored.queued_at}",
        MESSAGE_ID: percent.encode(stored.message_id),
        ACCEPTED_AT: str(stored.accepted_at),
        REASON: percent.encode(refusal.reason),
        STATUS: str(refusal.status or ""),
        DETAIL: percent.encode(refusal.detail),
        ATTEMPTS: str(stored.attempts + 1),
        FIRST_ATTEMPT_AT: str(stored.first_attempt_at or now),
        LAST_ATTEMPT_AT: str(now),
    }
    if stored.traceparent:
        headers[TRACEPARENT] = percent.encode(stored.traceparent)
    return headers


def letter_of(id_: int, headers: dict[str, str], payload: bytes) -> DeadLetter:
    """A dead letter, read back."""
    return DeadLetter(
        id=id_,
        message_id=percent.decode(headers.get(MESSAGE_ID, "")),
        payload=payload,
        accepted_at=whole(headers, ACCEPTED_AT, 0),
        refusal=Refusal(
            percent.decode(headers.get(REASON, "")),
            whole(headers, STATUS, 0) or None,
            percent.decode(headers.get(DETAIL, "")),
        ),
        attempts=whole(headers, ATTEMPTS, 1),
        first_attempt_at=whole(headers, FIRST_ATTEMPT_AT, 0),
        last_attempt_at=whole(headers, LAST_ATTEMPT_AT, 0),
        traceparent=percent.decode(headers.get(TRACEPARENT, "")),
    )


def whole(headers: dict[str, str], name: str, otherwise: int) -> int:
    """A header's number; what somebody else published without it, or with no number in it, is taken all the same."""
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < MAX_DIGITS else otherwise


def parse_headers(raw: bytes) -> dict[str, str]:
    """The headers of a message as JetStream's API gives them: a line that names the protocol, then one each."""
    _, *lines = raw.decode(errors="replace").split("\r\n")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


def is_meant(letter: DeadLetter, which: DeadLetterFilter) -> bool:
    """Whether a dead letter is one of those that a filter means."""
    at = letter.last_attempt_at
    return (
        (which.ids is None or letter.id in which.ids)
        and (which.reason is None or letter.refusal.reason == which.reason)
        and (which.since is None or at >= which.since)
        and (which.until is None or at < which.until)
        and ((which.event_type is None and which.user_id is None) or _has_event(letter, which))
    )


def _has_event(letter: DeadLetter, which: DeadLetterFilter) -> bool:
    event = event_pb2.Event.FromString(letter.payload)
    is_track = event.HasField("track")
    message = event.track if is_track else event.identify
    return (which.event_type is None or which.event_type == (event.track.event if is_track else "identify")) and (
        which.user_id is None or which.user_id in {message.user_id, message.anonymous_id}
    )
