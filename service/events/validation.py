"""The rules of an event: event > field violations. Pure.

The limits are Segment's own: 32 KB an event, a messageId of 100 characters, a userId or an anonymousId.
"""

import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

from google.protobuf.internal.containers import MessageMap
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from pointillist_destination.v1 import event_pb2

MAX_EVENT_SIZE = 32 * 1024  # bytes of the serialised Event
MAX_MESSAGE_ID = 100  # characters (code points)
MAX_DEPTH = 32  # levels of objects and arrays, the outermost counted; protobuf's own 100 have room for no more
MAX_VIOLATIONS = 20  # reported per event; an answer has little space, and nobody reads more
MAX_PATH = 200  # characters of a violation's path; a key may be as long as an event
MIN_SECONDS = -62_135_596_800  # 0001-01-01T00:00:00Z, the least that google.protobuf.Timestamp allows
MAX_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z, the most
MAX_NANOS = 999_999_999
TIMES: tuple[Literal["timestamp", "original_timestamp", "sent_at", "received_at"], ...] = (
    "timestamp",
    "original_timestamp",
    "sent_at",
    "received_at",
)

# The key of Value.struct_value (*) or Value.list_value (2), its length, then the key of the first thing in it. There
# is one for each level below the first that is not empty.
_LEVEL = re.compile(rb"[*2](?=[\x80-\xff]{0,2}[\x00-\x7f]\n)")


class Violation(NamedTuple):
    """One fault of an event."""

    field: str
    """Path of proto field names from the event on, such as `track.user_id`."""
    description: str
    """The error, and a valid form."""


def violations(message: event_pb2.Track | event_pb2.Identify, serialised: bytes) -> list[Violation]:
    """The faults of an event; an empty list for an acceptable one.

    After `MAX_VIOLATIONS` of them comes one more that says that there are more. The values of an event that is too
    large are not looked at.

    Args:
        message: the event's message.
        serialised: the bytes of the whole Event.
    """
    found = []
    if isinstance(message, event_pb2.Track):
        name = "track"
        if not message.event:
            found.append(Violation("track.event", "is empty; a track names what happened"))
    else:
        name = "identify"
    if not message.user_id and not message.anonymous_id:
        found.append(Violation(f"{name}.user_id", "is empty, and so is anonymous_id; one of the two is required"))
    if len(message.message_id) > MAX_MESSAGE_ID:
        found.append(
            Violation(f"{name}.message_id", f"has {len(message.message_id)} characters; {MAX_MESSAGE_ID} are allowed")
        )
    is_too_large = len(serialised) > MAX_EVENT_SIZE
    if is_too_large:
        found.append(Violation(name, f"is an event of {len(serialised)} bytes; {MAX_EVENT_SIZE} are allowed"))
    for field in TIMES:
        if message.HasField(field):
            timestamp = getattr(message, field)
            if not (MIN_SECONDS <= timestamp.seconds <= MAX_SECONDS and 0 <= timestamp.nanos <= MAX_NANOS):
                found += timestamp_violations(f"{name}.{field}", timestamp)
    if not is_too_large and _may_have_bad_values(serialised):
        found += _first(MAX_VIOLATIONS - len(found), name, _walk(name, message))
    return found


def _first(most: int, name: str, found: Iterator[Violation]) -> Iterator[Violation]:
    """So many of them, and then one that says that there are more; the rest is not looked for."""
    yield from islice(found, most)
    if next(found, None) is not None:
        yield Violation(name, f"has more faults than these {MAX_VIOLATIONS}")


def _may_have_bad_values(serialised: bytes) -> bool:
    """Return True if a number may be infinite, or a value too deep: a scan of the bytes that spares most events a walk.

    A walk through an event's Structs costs more than all other checks together; this costs about a hundredth of it.
    """
    if _may_have_not_finite(serialised):
        return True
    levels = serialised.count(b"*") + serialised.count(b"2")
    return levels >= MAX_DEPTH - 1 and len(_LEVEL.findall(serialised)) >= MAX_DEPTH - 1


def _may_have_not_finite(serialised: bytes) -> bool:
    """A double that is NaN or infinite ends with a byte of 0xF0 or above, then 0x7F or 0xFF.

    UTF-8 has no such pair, so that a message without one has no such double.
    """
    for end in (b"\x7f", b"\xff"):
        at = serialised.find(end, 1)
        while at > 0:
            if serialised[at - 1] >= 0xF0:
                return True
            at = serialised.find(end, at + 1)
    return False


def timestamp_violations(path: str, timestamp: Timestamp) -> Iterator[Violation]:
    """Return the reason that google.protobuf.Timestamp does not allow a Timestamp; None if it does."""
    if not MIN_SECONDS <= timestamp.seconds <= MAX_SECONDS:
        yield Violation(f"{path}.seconds", f"is {timestamp.seconds}, which is not within the years 0001 to 9999")
    if not 0 <= timestamp.nanos <= MAX_NANOS:
        yield Violation(f"{path}.nanos", f"is {timestamp.nanos}; 0 to {MAX_NANOS} are allowed")


def _walk(path: str, message: Message) -> Iterator[Violation]:
    """Find numbers that are not finite and values that are too deep, wherever a message has doubles or Structs."""
    for field, value in message.ListFields():
        where = _step(path, f".{field.name}")
        if isinstance(value, Struct):
            yield from _walk_fields(where, value.fields, 1)
        elif isinstance(value, Message):
            yield from _walk(where, value)
        elif isinstance(value, float) and not math.isfinite(value):
            yield Violation(where, f"is {value}; numbers are finite")


def _walk_fields(path: str, fields: "MessageMap[str, Value]", depth: int) -> Iterator[Violation]:
    for key in sorted(fields):
        yield from _walk_value(_step(path, f".{key}"), fields[key], depth + 1)


def _walk_value(path: str, value: Value, depth: int) -> Iterator[Violation]:
    kind = value.WhichOneof("kind")
    if kind == "number_value" and not math.isfinite(value.number_value):
        yield Violation(path, f"is {value.number_value}; numbers are finite")
    elif kind in {"struct_value", "list_value"} and depth > MAX_DEPTH:
        yield Violation(path, f"is nested more than {MAX_DEPTH} levels deep")
    elif kind == "struct_value":
        yield from _walk_fields(path, value.struct_value.fields, depth)
    elif kind == "list_value":
        for index, item in enumerate(value.list_value.values):
            yield from _walk_value(_step(path, f"[{index}]"), item, depth + 1)


def _step(path: str, step: str) -> str:
    """One step on from a path; one that is too long ends with an ellipsis and grows no more."""
    if len(path) == MAX_PATH:
        return path
    path += step
    return path if len(path) < MAX_PATH else f"{path[: MAX_PATH - 1]}…"
