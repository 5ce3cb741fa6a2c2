"""The headers of events and dead letters on JetStream, written and parsed.

The body of every message is the serialised Event, as everywhere else.
"""

from typing import NamedTuple

from service import percent
from service.events.message import filter_values
from service.outbox.base import DeadLetter, DeadLetterFilter, Entry, Refusal, Stored
from service.outbox.jetstream.connection import Received

DUPLICATE_ID = "Nats-Msg-Id"
"""JetStream's own: a second message with the same value, within the window, is not stored."""
MESSAGE_ID = "Pointillist-Message-Id"
"""The event's message_id if DUPLICATE_ID is another value; percent-encoded."""
ACCEPTED_AT = "Pointillist-Accepted-At"
QUEUED_AT = "Pointillist-Queued-At"
ANSWER_TO = "Pointillist-Answer-To"
"""The subject on which to report the delivery, because a caller waits for it."""
TRACEPARENT = "traceparent"
REASON = "Pointillist-Reason"
STATUS = "Pointillist-Status"
DETAIL = "Pointillist-Detail"
ATTEMPTS = "Pointillist-Attempts"
FIRST_ATTEMPT_AT = "Pointillist-First-Attempt-At"
LAST_ATTEMPT_AT = "Pointillist-Last-Attempt-At"

ACK_TOKENS = 9  # of the reply subject $JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE…; more with a domain (ADR-15)
NANOSECONDS = 1_000_000  # in a millisecond
MAX_DIGITS = 16  # of a number in a header; more digits are no date that Python can represent


class Delivery(NamedTuple):
    """The values that JetStream encodes in the reply subject of a message."""

    id: int
    """Its sequence number in the stream."""
    deliveries: int
    """Number of deliveries, this one included."""
    stored_at: int
    """Milliseconds since the epoch, by the clock of NATS."""


def delivery_of(reply: str) -> Delivery:
    """Parse the reply subject of a message."""
    tokens = reply.split(".")
    deliveries, id_, _, stored_at = tokens[4:8] if len(tokens) == ACK_TOKENS else tokens[6:10]
    return Delivery(int(id_), int(deliveries), int(stored_at) // NANOSECONDS)


def entry_headers(entry: Entry, queued_at: int, answer_to: str) -> dict[str, str]:
    """Return the headers of an event that is put.

    Args:
        entry: the event.
        queued_at: milliseconds since the epoch.
        answer_to: the subject on which to report its delivery, if a caller waits for it.
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
    """Return the headers of an event that is replayed.

    Its message_id is in the duplicate window already, so it gets another DUPLICATE_ID. That begins as no encoded
    message_id can: otherwise a caller could choose the same, and the event would count as stored.
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


def message_id_of(headers: dict[str, str], id_: int) -> str:
    """Return the message_id of an event or a dead letter; one made of its id if another publisher gave none."""
    return percent.decode(headers.get(MESSAGE_ID) or headers.get(DUPLICATE_ID) or f"jetstream-{id_}")


def stored_of(received: Received, delivery: Delivery) -> Stored:
    """Return the event of a message that was delivered to this process.

    JetStream counts deliveries, not attempts: a lease that was lost or released counts, too. It does not keep the time
    of the first attempt: the time at which the event was queued is the closest.
    """
    headers = received.headers or {}
    queued_at = whole(headers, QUEUED_AT, delivery.stored_at)
    return Stored(
        id=delivery.id,
        message_id=message_id_of(headers, delivery.id),
        payload=received.data,
        accepted_at=whole(headers, ACCEPTED_AT, delivery.stored_at),
        queued_at=queued_at,
        attempts=delivery.deliveries - 1,
        first_attempt_at=queued_at if delivery.deliveries > 1 else None,
        traceparent=percent.decode(headers.get(TRACEPARENT, "")),
    )


def letter_headers(stored: Stored, refusal: Refusal, now: int) -> dict[str, str]:
    """Return the headers of a dead letter; if it is published twice, because of a crash, it is stored once.

    Args:
        stored: the event that is given up.
        refusal: the reason.
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
    """Return the dead letter of a message."""
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
    """Return a header's number; `otherwise` if it is missing or no number, as in messages of other publishers."""
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < MAX_DIGITS else otherwise


def parse_headers(raw: bytes) -> dict[str, str]:
    """Parse headers as JetStream's API returns them: a line with the protocol version, then one line per header."""
    _, *lines = raw.decode(errors="replace").split("\r\n")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


def matches(letter: DeadLetter, which: DeadLetterFilter) -> bool:
    """Return True if a dead letter meets every condition of a filter."""
    at = letter.last_attempt_at
    return (
        (which.ids is None or letter.id in which.ids)
        and (which.reason is None or letter.refusal.reason == which.reason)
        and (which.since is None or at >= which.since)
        and (which.until is None or at < which.until)
        and ((which.event_type is None and which.user_id is None) or _has_event(letter, which))
    )


def _has_event(letter: DeadLetter, which: DeadLetterFilter) -> bool:
    type_, *users = filter_values(letter.payload)
    return (which.event_type is None or which.event_type == type_) and (which.user_id is None or which.user_id in users)
