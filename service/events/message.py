"""The message of an event: a Track or an Identify."""

from typing import TypeAlias

from google.protobuf.message import DecodeError

from pointillist_destination.v1 import event_pb2

Message: TypeAlias = event_pb2.Track | event_pb2.Identify


def message_of(event: event_pb2.Event) -> Message | None:
    """Return the message that an event holds; None where it holds none."""
    if event.HasField("track"):
        return event.track
    return event.identify if event.HasField("identify") else None


def known_message_of(event: event_pb2.Event) -> Message:
    """Return the message of a valid event, which holds one."""
    return event.track if event.HasField("track") else event.identify


def event_type(event: event_pb2.Event) -> str:
    """Return a track's event name, or "identify"; operators and filters distinguish dead letters by it."""
    return event.track.event if event.HasField("track") else "identify"


def filter_values(payload: bytes) -> tuple[str, str, str]:
    """Return the type, user_id and anonymous_id of a serialised Event; "" where its bytes do not parse."""
    try:
        event = event_pb2.Event.FromString(payload)
    except DecodeError:
        return "", "", ""
    message = known_message_of(event)
    return event_type(event), message.user_id, message.anonymous_id
