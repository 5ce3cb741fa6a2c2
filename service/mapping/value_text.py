"""The text of one value: how numbers, booleans, arrays and times are written in a label or a number.

- A string stays as it is, the empty one too. A boolean is "true" or "false".
- A number is the shortest decimal that reads back as the same double, without exponent and without a trailing ".0";
  minus zero is "0".
- An array is its compact JSON text. Nulls, `{}` and `[]` inside it are kept, the keys of its objects are sorted by
  code point, and its numbers are written as everywhere.
- A time is ISO 8601 in UTC with milliseconds.
- null, a value of no kind, `[]`, and the numbers that JSON has not (NaN and the infinities, which validation refuses
  and which are null to this module) have no text.
"""

from decimal import Decimal
from typing import TypeAlias

import orjson
from google.protobuf.struct_pb2 import ListValue, Value
from google.protobuf.timestamp_pb2 import Timestamp

from service.mapping.event_time import iso8601, nanoseconds

Scalar: TypeAlias = str | bool | float | Timestamp
"""The value of a typed field of the contract that is not a message of its own."""

EXACT = 1e16  # below it the shortest decimal of a whole number has all its digits
WITHOUT_EXPONENT = 1e-4  # from it up to EXACT orjson writes a number that is not whole without an exponent


def number_text(number: float) -> str | None:
    """The shortest decimal that reads back as `number`, without exponent; None for NaN and the infinities."""
    if number.is_integer():
        return str(int(number)) if -EXACT < number < EXACT else format(Decimal(repr(number)), "f")
    text = orjson.dumps(number).decode()  # the digits of repr, in a third of its time
    if "e" in text:
        return format(Decimal(text), "f")
    return None if text == "null" else text


def array_text(array: ListValue) -> str | None:
    """The compact JSON text of an array; None for an empty one."""
    values = array.values[:]  # to go through a list is faster than through protobuf's container
    if not values:
        return None
    return orjson.dumps([_plain(value) for value in values], option=orjson.OPT_SORT_KEYS).decode()


def scalar_text(scalar: Scalar) -> str | None:
    """The text of a typed field's value."""
    if isinstance(scalar, str):
        return scalar
    if isinstance(scalar, bool):
        return "true" if scalar else "false"
    if isinstance(scalar, float):
        return number_text(scalar)
    return iso8601(nanoseconds(scalar))


def value_text(value: Value, kind: str | None) -> str | None:
    """The text of a Struct's value of this kind; None for an object too, which has no text of its own."""
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        return number_text(value.number_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return array_text(value.list_value) if kind == "list_value" else None


def _plain(value: Value) -> object:
    """Return the value that orjson writes inside an array."""
    if string := value.string_value:  # reading an absent field gives "", and is cheaper than asking for the kind
        return string
    if number := value.number_value:
        return _plain_number(number)
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        fields = value.struct_value.fields
        return {key: (value := fields[key]).string_value or _plain(value) for key in fields}
    if kind == "list_value":
        return [_plain(element) for element in value.list_value.values[:]]
    if kind == "bool_value":
        return value.bool_value
    return {"string_value": "", "number_value": 0}.get(kind or "")


def _plain_number(number: float) -> object:
    """Return the text of a number; orjson's own floats would have ".0" and exponents."""
    if WITHOUT_EXPONENT <= abs(number) < EXACT:
        return int(number) if number.is_integer() else number
    text = number_text(number)
    return None if text is None else orjson.Fragment(text)
