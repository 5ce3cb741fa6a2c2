"""What holds for any input: nothing is raised, and what was imported is imported again as the same event."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointillist_destination.v1 import event_pb2
from service.events.segment_json import Imported, Refused, Skipped, import_line, import_message
from tests.support.paths import DATA

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([-0.0, 1e300, 2**53 + 1, 10**25, "37.7", "true", "1e999", "2024-01-01"])
)
names = st.text(max_size=6) | st.sampled_from(["extra", "name", "id", "traits", "latitude", "version", "x"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
objects = st.dictionaries(names, values, max_size=4)
parts = st.dictionaries(
    st.sampled_from(["name", "id", "version", "latitude", "wifi", "width", "adTrackingEnabled", "extra", "unknown"]),
    values,
    max_size=4,
)
PART_NAMES = ["app", "campaign", "device", "library", "location", "network", "os", "page", "referrer", "screen"]
contexts = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(PART_NAMES, parts | values),
        **dict.fromkeys(["active", "ip", "groupId", "channel", "personas", "other"], values),
        "traits": objects | values,
        "extra": st.dictionaries(names | st.sampled_from([*PART_NAMES, "ip"]), parts | values, max_size=3) | values,
    },
)
times = st.none() | st.datetimes().map(lambda moment: moment.isoformat()) | st.integers(-(10**10), 10**14)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(["track", "identify"]), "userId": st.text(min_size=1, max_size=5) | st.integers()},
    optional={
        "anonymousId": st.none() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
        "messageId": st.none() | st.text(max_size=5) | st.integers(),
        "event": st.text(min_size=1, max_size=5),
        "properties": st.none() | objects,
        "traits": st.none() | objects,
        "context": contexts | values,
        "integrations": st.none() | objects | values,
        "timestamp": times,
        "sentAt": times,
    },
)
# Anything at all, in the right and the wrong places: lone surrogates and numbers without end too.
weird_scalars = scalars | st.floats() | st.text(st.characters(), max_size=3) | st.just(10**400)
weird_values = st.recursive(
    weird_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
weird_fields = st.dictionaries(
    st.sampled_from(
        ["type", "userId", "messageId", "event", "properties", "traits", "context", "integrations", "sentAt"]
    )
    | st.text(st.characters(), max_size=3),
    weird_values | st.sampled_from(["track", [{"type": "track"}]]),
    max_size=3,
)
weird_messages = st.builds(lambda message, weird: {**message, **weird}, messages, weird_fields) | weird_fields

# A busy machine may be slow; only what comes out is of interest here.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def again(event: event_pb2.Event) -> event_pb2.Event:
    """Writes an event as the contract's JSON and imports that, with the type that stands beside it."""
    kind = event.WhichOneof("type")
    assert kind is not None
    result = import_message({"type": kind, **json_format.MessageToDict(getattr(event, kind))})
    assert isinstance(result, Imported), result
    assert result.ignored == ()
    return result.event


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
@patient
def test_no_bytes_raise(line: bytes) -> None:
    for result in import_line(line):
        assert isinstance(result, Imported | Skipped | Refused)


@given(weird_messages)
@patient
def test_no_json_raises_and_what_is_taken_has_no_fault_left(message: dict[str, Any]) -> None:
    for line in (json.dumps(message), json.dumps({"batch": [message, message], "context": message.get("context")})):
        for result in import_line(line.encode()):
            if isinstance(result, Imported):
                assert event_pb2.Event.FromString(result.event.SerializeToString()) == result.event
                assert again(result.event) == result.event
            elif isinstance(result, Refused):
                assert result.errors
                assert all(error.path.isprintable() and str(error).encode() for error in result.errors)


@given(messages)
@patient
def test_an_imported_event_is_a_fixed_point(message: dict[str, Any]) -> None:
    result = import_message(message)

    if isinstance(result, Imported):
        assert again(result.event) == result.event
    else:  # the strategy leaves out the event's name now and then; all else it makes can be taken
        assert isinstance(result, Refused)
        assert {error.path for error in result.errors} <= {"event", "timestamp", "sentAt", "messageId"}


@given(messages)
@patient
def test_a_line_and_the_message_parsed_from_it_give_the_same(message: dict[str, Any]) -> None:
    [from_line] = import_line(json.dumps(message).encode())
    from_message = import_message(message)

    assert type(from_line) is type(from_message)
    if isinstance(from_line, Imported):
        assert from_line == from_message


@given(objects)
@patient
def test_traits_are_kept_value_for_value(traits: dict[str, Any]) -> None:
    result = import_message({"type": "identify", "userId": "u", "traits": traits})

    assert isinstance(result, Imported)
    assert json_format.MessageToDict(result.event.identify.traits) == _as_doubles(traits)


def _as_doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_doubles(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_doubles(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        assert math.isfinite(value)
        return float(value)
    return value


@given(st.text())
@patient
def test_any_other_type_is_skipped(name: str) -> None:
    expected = Imported if name in ("identify", "track") else Skipped

    assert type(import_message({"type": name, "userId": "u", "event": "E"})) is expected


@pytest.mark.parametrize("name", ["segment_events.jsonl", "segment_libraries.jsonl"])
def test_real_events_are_fixed_points(name: str) -> None:
    for line in (DATA / name).read_bytes().splitlines():
        for result in import_line(line):
            if isinstance(result, Imported):
                assert again(result.event) == result.event
