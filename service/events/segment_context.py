"""Segment's `context` and the other free-form objects of a message, fitted into the contract.

A value whose key the contract names goes to its field; a value without a field, or that does not fit its field, goes to
the nearest `extra` under its own name, so that nothing of a context is lost. Which fields there are, and of which kind,
is read from the contract itself. Errors are collected, not raised, so that all of a message are reported at once.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pointillist_destination.v1 import event_pb2
from service.errors import SegmentJsonError
from service.events.segment_struct import LONE_SURROGATE, child_path, decimal_text, fill_struct, is_finite

_NUMERIC = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}


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
"""The scalar fields of a message: Segment's name to the contract's name and the reader of its value."""

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
        faults: receives the errors that `fill_struct` and `set_text` find.
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
    """Sets the scalar fields that `given` has fitting values for; returns the others, on top of `extra`."""
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
