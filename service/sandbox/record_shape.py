"""The shape of a record on the wire, checked as strictly as it is written.

    {"eventSource": "Segment", "eventType": "Order Completed", "eventTime": "2026-02-23T22:28:55.111Z",
     "actors": {"Customer": {"userId": "u-1"}}, "labels": {"plan": "premium"}, "numbers": {"revenue": "25.5"}}

The six keys are always there and there is no other. The tolerance of Pointillist itself is not public; the sandbox
refuses whatever this service would never mean to send, so that a fault shows on the first day.
"""

import re
from collections.abc import Mapping

import orjson

from service.events.segment_struct import kind_of

_KEYS = frozenset({"eventSource", "eventType", "eventTime", "actors", "labels", "numbers"})
_TEXTS = ("eventSource", "eventType", "eventTime")

# Without an exponent, and written out rather than `\d`, which also takes the digits of other scripts.
_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def record_fault(body: bytes) -> str | None:
    """Return the error in the body of one POST; None if there is none.

    Numbers may be decimal strings or JSON numbers, and eventTime any text, because the mapping sets both. An event
    needs a customer identifier of some kind, so actors may not be empty.

    Args:
        body: the bytes as they came.

    Returns:
        The first fault, such as `labels.age: a label is a string, not a number`; None for a good record.
    """
    try:
        record = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return f"the body is not JSON: {error}; expected one record, a JSON object"
    if not isinstance(record, dict):
        return f"the body is {kind_of(record)}; expected one record, a JSON object"
    return (
        _keys_fault(record)
        or _texts_fault(record)
        or _actors_fault(record["actors"])
        or _labels_fault(record["labels"])
        or _numbers_fault(record["numbers"])
    )


def _keys_fault(record: Mapping[str, object]) -> str | None:
    """Say which keys are missing, or else which do not belong there."""
    if record.keys() == _KEYS:
        return None
    if missing := sorted(_KEYS - record.keys()):
        return f"missing {', '.join(missing)}; a record has {', '.join(sorted(_KEYS))}"
    unknown = sorted(record.keys() - _KEYS)
    return f"unknown key {', '.join(unknown)}; a record has {', '.join(sorted(_KEYS))} and no other"


def _texts_fault(record: Mapping[str, object]) -> str | None:
    """Say which of the three plain fields is not a string, or empty."""
    for name in _TEXTS:
        value = record[name]
        if not isinstance(value, str):
            return f"{name}: expected a string, not {kind_of(value)}"
        if not value:
            return f"{name}: expected a string that is not empty"
    return None


def _actors_fault(actors: object) -> str | None:
    """Return the error in actors: class > identifier name > value."""
    if not isinstance(actors, dict):
        return f"actors: expected an object of classes, not {kind_of(actors)}"
    if not actors:
        return "actors: expected at least one class of actor, such as Customer"
    faults = (_actor_fault(class_name, identifiers) for class_name, identifiers in actors.items())
    return next(filter(None, faults), None)


def _actor_fault(class_name: str, identifiers: object) -> str | None:
    """Return the error in the identifiers of one class."""
    if not isinstance(identifiers, dict):
        return f"actors.{class_name}: expected an object of identifiers, not {kind_of(identifiers)}"
    if not identifiers:
        return f"actors.{class_name}: expected at least one identifier, such as userId"
    for name, value in identifiers.items():
        if not isinstance(value, str):
            return f"actors.{class_name}.{name}: an identifier is a string, not {kind_of(value)}"
        if not value:
            return f"actors.{class_name}.{name}: an identifier is not empty; leave it out"
    return None


def _labels_fault(labels: object) -> str | None:
    """Say which label is not a string; an empty one is."""
    if not isinstance(labels, dict):
        return f"labels: expected an object of strings, not {kind_of(labels)}"
    for name, value in labels.items():
        if not isinstance(value, str):
            return f"labels.{name}: a label is a string, not {kind_of(value)}"
    return None


def _numbers_fault(numbers: object) -> str | None:
    """Say which number is neither a decimal string nor a JSON number."""
    if not isinstance(numbers, dict):
        return f"numbers: expected an object of numbers, not {kind_of(numbers)}"
    for name, value in numbers.items():
        if isinstance(value, str):
            if not _DECIMAL.fullmatch(value):
                return f"numbers.{name}: expected a decimal without an exponent, such as 25.5"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            return f"numbers.{name}: a number is a decimal string or a JSON number, not {kind_of(value)}"
    return None
