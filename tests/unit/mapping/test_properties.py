"""What holds for the record of every event."""

import re
from collections import Counter
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from pointillist_destination.v1.event_pb2 import Event
from service.events.integrations import is_sent
from service.mapping.mapping_file import compile_mapping, load_mapping

BUILT_IN = load_mapping(None)
WITH_OPTIONS = compile_mapping(
    """
    numbers = "json"
    [[track]]
    from = "context"
    to = "labels_and_numbers"
    rename = {"no such path" = "x"}
    [[track]]
    from = "properties"
    to = "numbers"
    rename = {"no such path" = "x"}
    [[identify]]
    from = "traits"
    to = "labels"
    rename = {"no such path" = "x"}
    """,
    "test",
)

# few letters, and the underscore that flattening uses, so that keys often clash
KEYS = st.text("ab_", max_size=3) | st.sampled_from(["plan", "device_type", "a.b", "Ü"])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000).map(float)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text("xü ", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)
CONTEXTS = st.fixed_dictionaries(
    {},
    optional={
        "ip": st.text("1.", max_size=3),
        "traits": OBJECTS,
        "extra": OBJECTS,
        "screen": st.fixed_dictionaries({"width": NUMBERS}),
        "device": st.fixed_dictionaries(
            {}, optional={"type": st.text("ab", max_size=2), "adTrackingEnabled": st.booleans(), "extra": OBJECTS}
        ),
        "location": st.fixed_dictionaries({}, optional={"latitude": NUMBERS, "city": KEYS, "extra": OBJECTS}),
        "campaign": st.fixed_dictionaries({}, optional={"name": KEYS, "extra": OBJECTS}),
    },
)
TRACKS = st.fixed_dictionaries(
    {"event": st.text("E", max_size=1), "context": CONTEXTS, "properties": OBJECTS}, optional={"userId": KEYS}
)
IDENTIFIES = st.fixed_dictionaries({"traits": OBJECTS, "anonymousId": KEYS})
EVENTS = st.builds(lambda track: {"track": track}, TRACKS) | st.builds(
    lambda identify: {"identify": identify}, IDENTIFIES
)


def leaf_texts(value: object) -> Counter[str]:
    """What of a JSON value has to be in a record: how often each scalar and each array."""
    if isinstance(value, dict):
        return sum(map(leaf_texts, value.values()), Counter())
    if isinstance(value, bool):
        return Counter(["true" if value else "false"])
    if isinstance(value, float):
        return Counter([f"number {value + 0.0!r}"])
    if isinstance(value, list):
        return Counter(["array"] if value else [])
    return Counter([] if value is None else [str(value)])


def reversed_keys(value: Any) -> Any:
    """The same JSON value with the keys of its objects in the opposite order."""
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(element) for element in value] if isinstance(value, list) else value


@given(EVENTS)
def test_every_record_has_the_shape_of_the_wire(segment: dict[str, object]) -> None:
    record = orjson.loads(BUILT_IN.encode(ParseDict(segment, Event()), 0))

    assert list(record) == ["eventSource", "eventType", "eventTime", "actors", "labels", "numbers"]
    assert list(record["labels"]) == sorted(record["labels"])
    assert list(record["numbers"]) == sorted(record["numbers"])
    assert all(isinstance(text, str) for text in record["labels"].values())
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in record["numbers"].values())
    assert all(text for ids in record["actors"].values() for text in ids.values())


@given(EVENTS)
def test_equal_events_give_equal_bytes(segment: dict[str, object]) -> None:
    event, same = ParseDict(segment, Event()), ParseDict(reversed_keys(segment), Event())

    assert BUILT_IN.encode(event, 0) == BUILT_IN.encode(same, 0)
    assert WITH_OPTIONS.encode(event, 0) == WITH_OPTIONS.encode(same, 0)


@given(EVENTS)
def test_the_bytes_are_compact_json_in_utf8(segment: dict[str, object]) -> None:
    body = BUILT_IN.encode(ParseDict(segment, Event()), 0)

    assert orjson.dumps(orjson.loads(body)) == body


@given(EVENTS)
def test_the_message_says_what_the_bytes_say(segment: dict[str, object]) -> None:
    event = ParseDict(segment, Event())

    record = MessageToDict(BUILT_IN.record(event, 0), always_print_fields_with_no_presence=True)

    assert {"actors": {}, **record} == orjson.loads(BUILT_IN.encode(event, 0))


@given(IDENTIFIES)
def test_no_trait_is_lost(segment: dict[str, object]) -> None:
    record = BUILT_IN.record(ParseDict({"identify": segment}, Event()), 0)

    expected = leaf_texts(segment["traits"])
    labels = ["array" if text[:1] == "[" else text for text in record.labels.values()]
    numbers = [f"number {float(text)!r}" for text in record.numbers.values()]
    assert Counter([*labels, *numbers]) == expected


@given(TRACKS)
def test_as_many_values_reach_the_record_as_the_rows_name(segment: dict[str, object]) -> None:
    event = ParseDict({"track": segment}, Event())

    record = WITH_OPTIONS.record(event, 0)

    named = leaf_texts(segment["context"]) + leaf_texts(segment["properties"])
    assert len(record.labels) + len(record.numbers) == named.total()


@given(EVENTS)
def test_the_explanation_names_each_part_of_the_record(segment: dict[str, object]) -> None:
    event = ParseDict(segment, Event())

    for mapping in (BUILT_IN, WITH_OPTIONS):
        record, explanation = mapping.record(event, 0), mapping.explain(event, 0)
        assert set(explanation.labels) == set(record.labels)
        assert set(explanation.numbers) == set(record.numbers)


@given(EVENTS)
def test_an_option_that_changes_nothing_changes_nothing(segment: dict[str, object]) -> None:
    event = ParseDict(segment, Event())
    with_option = BUILT_IN.describe().replace("to =", 'drop = ["no such path"]\nto =')

    assert compile_mapping(with_option, "test").encode(event, 0) == BUILT_IN.encode(event, 0)


@given(OBJECTS)
def test_only_false_itself_keeps_an_event_back(integrations: dict[str, object]) -> None:
    assert is_sent(ParseDict(integrations, Struct()))
