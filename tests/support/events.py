"""Good events, told from each other by a number, and what makes entries of them."""

from typing import Any

from pointillist_destination.v1 import event_pb2
from service.outbox.base import Entry

ACCEPTED_AT = 1_800_000_000_000  # milliseconds since the epoch


def track(number: int = 1, /, **fields: Any) -> event_pb2.Track:
    """A good track message."""
    given: dict[str, Any] = {
        "user_id": f"u-{number}",
        "event": "Order Completed",
        "message_id": f"m-{number}",
        "properties": {"revenue": 25.5, "number": str(number)},
    }
    return event_pb2.Track(**(given | fields))


def identify(number: int = 1, /, **fields: Any) -> event_pb2.Identify:
    """A good identify message."""
    given: dict[str, Any] = {"user_id": f"u-{number}", "message_id": f"i-{number}", "traits": {"plan": "premium"}}
    return event_pb2.Identify(**(given | fields))


def event(number: int = 1, /, **fields: Any) -> event_pb2.Event:
    """A good track, as an Event."""
    return event_pb2.Event(track=track(number, **fields))


def entry(number: int = 1, message_id: str | None = None, accepted_at: int = ACCEPTED_AT) -> Entry:
    """A good track, as it goes into the outbox."""
    message_id = f"m-{number}" if message_id is None else message_id
    payload = event(number, message_id=message_id).SerializeToString(deterministic=True)  # two are the same bytes
    return Entry(message_id, payload, accepted_at)


def entries(count: int, first: int = 0) -> list[Entry]:
    """So many of them."""
    return [entry(number) for number in range(first, first + count)]
