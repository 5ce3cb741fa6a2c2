"""Struct fields of an event from Segment JSON, and the words that its errors share: kinds of JSON values, paths."""

import math
from collections.abc import Iterator, MutableMapping
from decimal import Decimal
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from service.errors import SegmentJsonError
from service.events.validation import MAX_DEPTH

SHOWN_KEY = 100  # characters of a key that a path repeats

LONE_SURROGATE = "holds a lone surrogate (half a character); whole Unicode characters are right"

_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def child_path(path: str, key: object) -> str:
    """Adds a key to a path, in a form that any terminal and log can show on one line."""
    shown = str(key)
    if len(shown) > SHOWN_KEY:
        shown = shown[:SHOWN_KEY] + "…"
    if not shown.isprintable():  # nor is a lone surrogate, which no output could encode
        shown = shown.encode("unicode_escape").decode("ascii")
    return f"{path}.{shown}" if path else shown


def kind_of(value: object) -> str:
    """Return the kind of a JSON value, such as "an object", for an error message."""
    return _KINDS.get(type(value), f"a {type(value).__name__}, which JSON has not")


def is_finite(number: float) -> bool:
    """Tells whether a double can hold the number; an integer of 400 digits is as infinite as `1e999`."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def decimal_text(number: float) -> str:
    """Writes a finite number as the shortest decimal that reads back the same, without exponent and trailing `.0`."""
    if isinstance(number, int):
        return str(number)
    text = repr(number + 0.0)  # -0.0 is 0
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def set_text(message: Message, field: str, text: str, path: str, faults: list[SegmentJsonError]) -> None:
    """Sets a string field, or adds the fault that the string has a lone surrogate."""
    try:
        setattr(message, field, text)
    except UnicodeEncodeError:
        faults.append(SegmentJsonError(path, LONE_SURROGATE))


def fill_struct(struct: struct_pb2.Struct, values: dict[str, Any], path: str, faults: list[SegmentJsonError]) -> None:
    """Copies a JSON object into a Struct, nulls included; integers become the nearest double.

    Args:
        struct: is set, even where there are no values.
        values: a parsed JSON object.
        path: where the object stands, in Segment's own names.
        faults: gets one fault for each number that is not finite, each string with a lone surrogate, and each object or
            array below level 32, the object itself being level 1. The Struct is then not complete.
    """
    struct.SetInParent()
    try:
        _fill_fields(struct.fields, values, 1)
    except (ValueError, OverflowError, TypeError):
        # The copy stops at the first fault and does not know its place; only now is it worth looking for all of them.
        faults.extend(_faults_in(values, path, 1))


def _fill_fields(fields: MutableMapping[str, struct_pb2.Value], values: dict[str, Any], level: int) -> None:
    for key, value in values.items():
        _fill_value(fields[key], value, level)


def _fill_value(target: struct_pb2.Value, value: Any, level: int) -> None:
    """Copies one JSON value, which stands in a container of that level; raises at anything a Struct cannot hold.

    Assigning to the message in place takes a third less time than `Struct.update` and half that of constructors.
    """
    kind = type(value)
    if kind is str:
        target.string_value = value  # UnicodeEncodeError: a lone surrogate
    elif kind is bool:
        target.bool_value = value
    elif kind is int or kind is float:
        if not math.isfinite(value):  # OverflowError: an integer too large for a double
            raise ValueError
        target.number_value = value + 0.0  # -0.0 is 0, as in the JSON that is written from a Struct
    elif value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif level == MAX_DEPTH:
        raise ValueError
    elif kind is dict:
        target.struct_value.SetInParent()
        _fill_fields(target.struct_value.fields, value, level + 1)
    elif kind is list:
        target.list_value.SetInParent()
        add = target.list_value.values.add
        for item in value:
            _fill_value(add(), item, level + 1)
    else:
        raise TypeError


def _faults_in(value: Any, path: str, level: int) -> Iterator[SegmentJsonError]:
    """Finds everything that `_fill_value` would refuse; `level` is the value's own, if it is an object or an array."""
    kind = type(value)
    if kind is not dict and kind is not list:
        if reason := _scalar_fault(value):
            yield SegmentJsonError(path, reason)
    elif level > MAX_DEPTH:
        yield SegmentJsonError(path, f"nests over {MAX_DEPTH} levels deep; at most {MAX_DEPTH} can be taken")
    elif kind is list:
        for index, item in enumerate(value):
            yield from _faults_in(item, f"{path}[{index}]", level + 1)
    else:
        for key, item in value.items():
            where = child_path(path, key)
            if type(key) is not str:
                yield SegmentJsonError(where, f"has a key that is {kind_of(key)}; a string is right")
            elif has_lone_surrogate(key):
                yield SegmentJsonError(where, LONE_SURROGATE)
            yield from _faults_in(item, where, level + 1)


def _scalar_fault(value: Any) -> str | None:
    """Returns the error in a value that is neither an object nor an array; None if there is none."""
    kind = type(value)
    if kind is int or kind is float:
        return None if is_finite(value) else "is not a finite number; one that a double can hold is right"
    if kind is str:
        return LONE_SURROGATE if has_lone_surrogate(value) else None
    return None if kind is bool or value is None else f"is {kind_of(value)}"


def has_lone_surrogate(text: str) -> bool:
    """Tells whether the string holds half a character, which JSON can write (an escaped `d800`) and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# ---- scalars: a value that fits its field, or None for one that does not ----------------------------------------
