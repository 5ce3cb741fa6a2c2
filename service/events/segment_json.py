"""Segment JSON, as real libraries emit it, read as events of the contract.

The gRPC contract is strict; files of Segment messages are not, because Segment's own API is not. This importer takes
the messages that Segment's libraries are known to send: nulls for absent values, numeric ids, bodies of the HTTP API
and its batches. A message that cannot be accepted is refused with all of its errors at once, each with its path; a
top-level key that the contract has no place for is named, never silently lost. Of the message's own content an error
repeats only the names of keys and a time that cannot be read.
"""

import functools
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import orjson
from google.protobuf import struct_pb2

from pointillist_destination.v1 import event_pb2
from service.errors import SegmentJsonError
from service.events.segment_context import fill_context, without_nulls
from service.events.segment_struct import (
    LONE_SURROGATE,
    child_path,
    decimal_text,
    fill_struct,
    has_lone_surrogate,
    is_finite,
    kind_of,
    set_text,
)
from service.events.segment_time import read_time
from service.events.validation import MAX_DEPTH, MAX_EVENT_SIZE, MAX_MESSAGE_ID

LONGEST_INTEGER = 310  # characters; a longer one is beyond every double

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The quick parser makes doubles of integers beyond 64 bits, and so may change the last digits of an id.
_LONG_INTEGER = re.compile(rb":\s*-?\d{19}")
_IDS = {"userId": "user_id", "anonymousId": "anonymous_id", "messageId": "message_id"}
_TIMES = {
    "timestamp": "timestamp",
    "originalTimestamp": "original_timestamp",
    "sentAt": "sent_at",
    "receivedAt": "received_at",
}
_BATCH_KEYS = frozenset({"batch", "context", "integrations", "sentAt"})
_COMMON_KEYS = frozenset({"type", "context", "integrations", *_IDS, *_TIMES})
_IDENTIFY_KEYS = _COMMON_KEYS | {"traits"}
_TRACK_KEYS = _COMMON_KEYS | {"event", "properties"}


@dataclass(frozen=True, slots=True)
class Imported:
    """A message that became an event.

    `ignored` names the message's top-level keys that the contract has no place for, by name or by value.
    """

    event: event_pb2.Event
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message of a type that Pointillist is not sent: "page", "screen", "group", "alias", "delete" or any other."""

    type: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that cannot be taken, with every fault found; a path in a batch is such as `batch[3].userId`."""

    errors: tuple[SegmentJsonError, ...]

    is_unreadable: bool = False
    """True for a line that is not JSON, and so no message."""


Result = Imported | Skipped | Refused
Target = event_pb2.Identify | event_pb2.Track


def import_line(line: bytes) -> list[Result]:
    """Reads one line of Segment JSON: a message, or a body of Segment's batch API.

    Args:
        line: UTF-8; a byte order mark before it is passed over.

    Returns:
        One result a message, in their order: none for a blank line, one for a message, one an item for a batch body.
        Bytes that are not JSON are one `Refused`; nothing is raised.
    """
    line = line.removeprefix(_BYTE_ORDER_MARK)
    if not line.strip():
        return []
    try:
        parsed = _parse(line)
    except SegmentJsonError as error:
        return [Refused((error,), is_unreadable=True)]
    if isinstance(parsed, dict) and parsed.get("batch") is not None and parsed.get("type") is None:
        return _import_batch(parsed)
    return [import_message(parsed)]


def import_message(message: object) -> Result:
    """Reads one message that is parsed already.

    Args:
        message: an object as `json.loads` returns it.

    Returns:
        The event, with the names of the keys that it has no place for; or why there is none.
    """
    return _import(message, "")


def only_item(line: bytes, index: int) -> bytes:
    """Writes the batch body that a line is with one of its items alone, so that this one can be sent by itself.

    Args:
        line: one of which `import_line` made several results.
        index: the item's, counted from zero.
    """
    body = _parsed_body(line)
    return json.dumps(body | {"batch": [body["batch"][index]]}).encode()


@functools.lru_cache(maxsize=2)  # a body whose every message is refused is asked for as often as it has messages
def _parsed_body(line: bytes) -> dict[str, Any]:
    body = _parse(line.removeprefix(_BYTE_ORDER_MARK))
    assert isinstance(body, dict)
    return body


# ---- parsing -------------------------------------------------------------------------------------------------------


def _parse(line: bytes) -> object:
    """Parses JSON quickly, and slowly where the quick parser gives up or might round an id."""
    if _LONG_INTEGER.search(line) is None:
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            # Not always for good: it also gives up at NaN, 1e999 and lone surrogates, whose places can be reported.
            pass
    return _parse_slowly(line)


def _parse_slowly(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8", "surrogatepass"), parse_int=_integer)
    except UnicodeDecodeError as error:
        reason = (
            f"is not UTF-8: byte {error.start + 1} cannot be read; a file of UTF-8 JSON, one message a line, is right"
        )
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} (character {error.pos + 1}); one whole JSON object a line is right"
    except RecursionError:
        reason = f"nests too deep to be parsed; at most {MAX_DEPTH} levels can be taken"
    raise SegmentJsonError("", reason)


def _integer(text: str) -> float:
    # Python refuses to convert thousands of digits; any number of that size is infinite as a double anyway.
    return int(text) if len(text) <= LONGEST_INTEGER else float(text)


# ---- batches -------------------------------------------------------------------------------------------------------


def _import_batch(body: dict[str, Any]) -> list[Result]:
    items = body["batch"]
    if not isinstance(items, list):
        return [Refused((SegmentJsonError("batch", f"is {kind_of(items)}; an array of messages is right"),))]
    # No item is at fault for a key of the body that no output could encode: such a key is named escaped.
    unplaced = [child_path("", name) if has_lone_surrogate(name) else name for name in _unplaced(body, _BATCH_KEYS)]
    results = []
    for index, item in enumerate(items):
        if isinstance(item, dict):
            message, replaced = _with_outer(body, item)
            result = _import(message, f"batch[{index}]")
        else:
            replaced, result = [], _import(item, f"batch[{index}]")
        if isinstance(result, Imported) and (unplaced or replaced):
            result = replace(result, ignored=tuple(dict.fromkeys([*result.ignored, *replaced, *unplaced])))
        results.append(result)
    return results


def _with_outer(body: dict[str, Any], item: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Adds a batch body's common values to one item, whose own values win.

    Returns:
        The whole message, and the names of the item's keys whose value gave way because it is not an object.
    """
    message = dict(item)
    replaced = []
    for name, absent in (("context", without_nulls), ("integrations", dict)):
        outer = body.get(name)
        if not isinstance(outer, dict):
            continue
        own = item.get(name)
        if isinstance(own, dict):
            message[name] = _merged(outer, absent(own), MAX_DEPTH)
        else:
            message[name] = outer
            if own is not None:
                replaced.append(name)
    if item.get("sentAt") in (None, ""):
        message["sentAt"] = body.get("sentAt")
    return message, replaced


def _merged(outer: dict[str, Any], own: dict[str, Any], levels: int) -> dict[str, Any]:
    """Merges two objects, and the objects in them as far down as an event may nest; `own` wins."""
    merged = {**outer, **own}
    for key in outer.keys() & own.keys():
        above, below = outer[key], own[key]
        if isinstance(above, dict) and isinstance(below, dict) and levels:
            merged[key] = _merged(above, below, levels - 1)
    return merged


# ---- messages ------------------------------------------------------------------------------------------------------


def _import(message: object, item: str) -> Result:
    """Imports one message; `item` is its place in a batch body, such as `batch[3]`, or ""."""
    if not isinstance(message, dict):
        return Refused(
            (SegmentJsonError(item, f"is {kind_of(message)}; a JSON object, one Segment message, is right"),)
        )
    kind = _type_of(message)
    if isinstance(kind, str) and kind not in ("identify", "track") and not has_lone_surrogate(kind):
        return Skipped(kind)

    prefix = f"{item}." if item else ""
    faults: list[SegmentJsonError] = []
    event = event_pb2.Event()
    target = event.track if kind == "track" else event.identify
    target.SetInParent()
    if kind not in ("identify", "track"):
        faults.append(_type_fault(kind, prefix))
    _fill_ids(target, message, prefix, faults)
    if isinstance(target, event_pb2.Track):
        _fill_event_name(target, message, prefix, faults)
        _fill_body(target.properties, message.get("properties"), f"{prefix}properties", faults)
    else:
        _fill_body(target.traits, message.get("traits"), f"{prefix}traits", faults)
    if isinstance(context := message.get("context"), dict):
        fill_context(target.context, context, f"{prefix}context", faults)
    if isinstance(integrations := message.get("integrations"), dict):
        fill_struct(target.integrations, integrations, f"{prefix}integrations", faults)
    _fill_times(target, message, prefix, faults)

    ignored = _unplaced(message, _TRACK_KEYS if kind == "track" else _IDENTIFY_KEYS)
    faults += [SegmentJsonError(child_path(item, name), LONE_SURROGATE) for name in ignored if has_lone_surrogate(name)]
    if (size := event.ByteSize()) > MAX_EVENT_SIZE:
        faults.append(
            SegmentJsonError(item, f"the event takes {size} bytes; at most {MAX_EVENT_SIZE} (32 KiB) is right")
        )
    return Refused(tuple(faults)) if faults else Imported(event, ignored)


def _type_of(message: dict[str, Any]) -> object:
    """Tells the type, which bodies of the HTTP API's /v1/track and /v1/identify go without; None where nothing does."""
    if message.get("type") is not None:
        return message["type"]
    if message.get("event") is not None:
        return "track"
    if message.get("traits") is not None and message.get("groupId") is None:
        return "identify"
    return None


def _type_fault(kind: object, prefix: str) -> SegmentJsonError:
    path = f"{prefix}type"
    if kind is None:
        return SegmentJsonError(path, 'type is missing; "identify" or "track" is right')
    if isinstance(kind, str):
        return SegmentJsonError(path, LONE_SURROGATE)
    return SegmentJsonError(path, f'is {kind_of(kind)}; a string, "identify" or "track", is right')


def _unplaced(message: dict[str, Any], known: frozenset[str]) -> tuple[str, ...]:
    """Names the keys that have a value and no place, and the two objects that are none."""
    return tuple(
        name
        for name, value in message.items()
        if value is not None
        and (name not in known or (name in ("context", "integrations") and not isinstance(value, dict)))
    )


def _fill_ids(target: Target, message: dict[str, Any], prefix: str, faults: list[SegmentJsonError]) -> None:
    for name, field in _IDS.items():
        value = message.get(name)
        if _is_absent(value):
            continue
        path = f"{prefix}{name}"
        try:
            text = _id_text(value)
        except ValueError as error:
            faults.append(SegmentJsonError(path, str(error)))
            continue
        set_text(target, field, text, path, faults)
        if name == "messageId" and len(text) > MAX_MESSAGE_ID:
            reason = f"has {len(text)} characters; at most {MAX_MESSAGE_ID} is right"
            faults.append(SegmentJsonError(path, reason))
    if _is_absent(message.get("userId")) and _is_absent(message.get("anonymousId")):
        faults.append(
            SegmentJsonError(f"{prefix}userId", "no userId and no anonymousId; at least one of them is right")
        )


def _is_absent(value: object) -> bool:
    return value is None or value == ""


def _id_text(value: object) -> str:
    """Writes an id as a string; raises ValueError for a value that is neither a string nor a finite number."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if is_finite(value):
            return decimal_text(value)
        raise ValueError("is not a finite number; a string, or a smaller number, is right")
    raise ValueError(f"is {kind_of(value)}; a string, or a number, is right")


def _fill_event_name(
    track: event_pb2.Track, message: dict[str, Any], prefix: str, faults: list[SegmentJsonError]
) -> None:
    value = message.get("event")
    path = f"{prefix}event"
    if _is_absent(value):
        faults.append(SegmentJsonError(path, 'track without event; a name such as "Order Completed" is right'))
    elif isinstance(value, str):
        set_text(track, "event", value, path, faults)
    else:
        faults.append(SegmentJsonError(path, f'is {kind_of(value)}; a string such as "Order Completed" is right'))


def _fill_body(struct: struct_pb2.Struct, value: object, path: str, faults: list[SegmentJsonError]) -> None:
    """Fills in the traits or the properties."""
    if isinstance(value, dict):
        fill_struct(struct, value, path, faults)
    elif value is not None:
        faults.append(SegmentJsonError(path, f"is {kind_of(value)}; an object is right"))


def _fill_times(target: Target, message: dict[str, Any], prefix: str, faults: list[SegmentJsonError]) -> None:
    for name, field in _TIMES.items():
        value = message.get(name)
        if _is_absent(value):
            continue
        try:
            getattr(target, field).CopyFrom(read_time(value))
        except ValueError as error:
            faults.append(SegmentJsonError(f"{prefix}{name}", str(error)))
