"""Segment's `context` and the other free-form objects of a message, fitted into the contract.

A value whose key the contract names goes to its field; what has no field, or cannot be made to fit its field, goes to
the nearest `extra` under its own name, so that nothing of a context is lost. Which fields there are, and of which kind,
is read from the contract itself. Faults are collected, not raised, so that all of a message's faults are told at once.
"""

import math
import re
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pointillist_destination.v1 import event_pb2
from service.errors import SegmentJsonError
from service.events.validation import MAX_DEPTH

SHOWN_KEY = 100  # characters of a key that a path repeats

LONE_SURROGATE = "holds a lone surrogate (half a character); whole Unicode characters are right"

_NUMERIC = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
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
    """Names the kind of a JSON value, such as "an object", to say in an error what was found."""
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
    """Says what is wrong with a value that is neither an object nor an array, if anything is."""
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


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and is_finite(value):
        return decimal_text(value)
    return None


def _as_number(value: object) -> float | None:
    if isinstance(value, str) and _NUMERIC.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value):
        return value + 0.0
    return None


def _as_boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return _BOOLEANS.get(value) if isinstance(value, str) else None


_READERS: dict[int, Callable[[object], object]] = {
    FieldDescriptor.TYPE_STRING: _as_text,
    FieldDescriptor.TYPE_DOUBLE: _as_number,
    FieldDescriptor.TYPE_BOOL: _as_boolean,
}

Scalars = dict[str, tuple[str, Callable[[object], object]]]
"""The scalar fields of a message: Segment's name to the contract's name and what reads a value for it."""

_NO_FIELD: tuple[str, Callable[[object], object]] = ("", lambda _: None)


@dataclass(frozen=True, slots=True)
class _Part:
    """An object in the context that has a message of its own, such as `device`."""

    field: str
    scalars: Scalars
    has_extra: bool


def _scalars_of(descriptor: Descriptor) -> Scalars:
    return {
        field.json_name: (field.name, _READERS[field.type]) for field in descriptor.fields if field.type in _READERS
    }


def _parts_of(descriptor: Descriptor) -> dict[str, _Part]:
    return {
        field.json_name: _Part(
            field.name, _scalars_of(field.message_type), "extra" in field.message_type.fields_by_name
        )
        for field in descriptor.fields
        if field.message_type is not None and field.message_type is not struct_pb2.Struct.DESCRIPTOR
    }


_SCALARS = _scalars_of(event_pb2.Context.DESCRIPTOR)
_PARTS = _parts_of(event_pb2.Context.DESCRIPTOR)


# ---- the context ---------------------------------------------------------------------------------------------------


def fill_context(context: event_pb2.Context, given: dict[str, Any], path: str, faults: list[SegmentJsonError]) -> None:
    """Copies a JSON `context` into the contract's Context, so that nothing but nulls is left out.

    Numbers and booleans become strings, and strings numbers or booleans, where the field wants it. An object `extra`
    (as the contract's own JSON has it) is taken as it is; where a key stands beside it too, the one beside it holds.

    Args:
        context: is set, even where there is nothing in it.
        given: a parsed JSON object.
        path: where it stands, in Segment's own names.
        faults: gets what `fill_struct` and `set_text` find.
    """
    context.SetInParent()
    extra = _object_in(given, "extra")
    rest = _place_scalars(context, _SCALARS, given, extra=extra, path=path, faults=faults)
    for name, part in _PARTS.items():
        value = given.get(name)
        if not isinstance(value, dict):
            continue
        del rest[name]
        where = f"{path}.{name}"
        message = getattr(context, part.field)
        message.SetInParent()
        if part.has_extra:
            left = _place_scalars(
                message, part.scalars, value, extra=_object_in(value, "extra"), path=where, faults=faults
            )
            if left:
                fill_struct(message.extra, left, where, faults)
        else:
            left = _place_scalars(
                message, part.scalars, value, extra=_object_in(extra, name), path=where, faults=faults
            )
            if left:
                rest[name] = left
    if isinstance(traits := given.get("traits"), dict):
        del rest["traits"]
        fill_struct(context.traits, traits, f"{path}.traits", faults)
    if rest:
        fill_struct(context.extra, rest, path, faults)


def _object_in(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Gets an object by its name, or an empty one where there is none or something else."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def _place_scalars(
    message: Message,
    scalars: Scalars,
    given: dict[str, Any],
    *,
    extra: dict[str, Any],
    path: str,
    faults: list[SegmentJsonError],
) -> dict[str, Any]:
    """Sets the scalar fields that `given` has fitting values for; returns what is left, on top of `extra`."""
    rest = dict(extra)
    for name, value in given.items():
        if value is None or value is extra:
            continue
        field, read = scalars.get(name, _NO_FIELD)
        fitted = read(value)
        if fitted is None:
            rest[name] = value
            continue
        rest.pop(name, None)
        try:
            setattr(message, field, fitted)
        except UnicodeEncodeError:
            faults.append(SegmentJsonError(child_path(path, name), LONE_SURROGATE))
    return rest


def without_nulls(context: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the nulls that mean absence: those of the context and of its parts, and not those deeper in."""
    return {
        name: {key: item for key, item in value.items() if item is not None}
        if name in _PARTS and isinstance(value, dict)
        else value
        for name, value in context.items()
        if value is not None
    }
