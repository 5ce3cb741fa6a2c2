"""Whatever record the mapping makes of a valid event, the sandbox takes: the two were written from the same page."""

import orjson
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import assume, given
from hypothesis import strategies as st

from pointillist_destination.v1.event_pb2 import Event
from service.events.message import known_message_of
from service.events.segment_json import Imported, import_message
from service.events.validation import violations
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import compile_mapping, load_mapping
from service.sandbox.record_shape import record_fault

BUILT_IN = load_mapping(None)
OF_AN_OPERATOR = compile_mapping(
    """
    event_source = "Web shop"
    actor_class = "Visitor"
    numbers = "json"
    time_format = "%Y-%m-%d %H:%M:%S%z"
    [[track]]
    from = "context"
    to = "labels_and_numbers"
    drop = ["ip"]
    [[track]]
    from = "properties"
    to = "numbers"
    rename = {plan = "level"}
    [[track]]
    from = "properties.order_id"
    to = "actors.Order.orderId"
    [[identify]]
    from = "traits"
    to = "labels"
    [[identify]]
    from = "receivedAt"
    to = "labels"
    """,
    "test",
)
MAPPINGS = pytest.mark.parametrize("mapping", [BUILT_IN, OF_AN_OPERATOR], ids=["built in", "of an operator"])

TEXTS = st.text(max_size=5)
KEYS = st.sampled_from(["plan", "order_id", "revenue", "location_city", "a", "a_b", ""]) | TEXTS
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)
IDS = st.none() | TEXTS | NUMBERS
TIMES = st.none() | st.sampled_from(
    [
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999+00:00",
        "2026-02-23T22:28:55.111222333-05:00",
        "2016-12-31T23:59:60Z",
        "9999-12-31T23:59:59.999999999Z",
    ]
)


def part(*names: str) -> st.SearchStrategy[dict[str, object]]:
    """A typed part of the context, with values of any kind for its fields and beside them."""
    return st.dictionaries(st.sampled_from(names) | KEYS, VALUES, max_size=4)


CONTEXTS = st.fixed_dictionaries(
    {},
    optional={
        "traits": OBJECTS,
        "ip": SCALARS,
        "campaign": part("name", "source", "id"),
        "device": part("id", "version", "adTrackingEnabled"),
        "location": part("city", "latitude", "speed"),
        "screen": part("width"),
        "personas": OBJECTS,
    },
)
COMMON = {"anonymousId": IDS, "context": CONTEXTS} | dict.fromkeys(
    ("timestamp", "originalTimestamp", "sentAt", "receivedAt"), TIMES
)
MESSAGES = st.fixed_dictionaries(
    {"type": st.just("track"), "event": TEXTS, "userId": IDS}, optional={**COMMON, "properties": OBJECTS}
) | st.fixed_dictionaries({"type": st.just("identify"), "userId": IDS}, optional={**COMMON, "traits": OBJECTS})


def the_sandbox_takes(mapping: Mapping, event: Event, accepted_at: int) -> None:
    message = known_message_of(event)
    assume(not violations(message, event.SerializeToString()))

    body = mapping.encode(event, accepted_at)

    assert record_fault(body) is None, body


@MAPPINGS
@given(message=MESSAGES, accepted_at=st.integers(-(2**63), 2**63))
def test_the_record_of_a_message_in_a_file_has_a_shape_that_the_sandbox_takes(
    mapping: Mapping, message: dict[str, object], accepted_at: int
) -> None:
    # given: a message that the importer takes
    result = import_message(message)
    assume(isinstance(result, Imported))
    assert isinstance(result, Imported)

    # when it is mapped, then
    the_sandbox_takes(mapping, result.event, accepted_at)


@MAPPINGS
@given(
    contents=st.builds(lambda values: {"track": {"event": "E", "userId": "u", "properties": values}}, OBJECTS)
    | st.builds(lambda values: {"identify": {"anonymousId": "a", "traits": values}}, OBJECTS)
)
def test_the_record_of_a_message_in_a_call_has_a_shape_that_the_sandbox_takes(
    mapping: Mapping, contents: dict[str, object]
) -> None:
    # given: a message as a client writes it
    event = ParseDict(contents, Event())

    # when it is mapped, then
    the_sandbox_takes(mapping, event, 0)


@pytest.mark.parametrize("number", [5e-324, -1.7976931348623157e308, 1e21, 1e-7, -0.0, 2.0**63, 2.0**64])
@MAPPINGS
def test_no_number_has_a_form_that_the_sandbox_refuses(mapping: Mapping, number: float) -> None:
    event = ParseDict({"track": {"event": "E", "userId": "u", "properties": {"n": number, "a": [number]}}}, Event())

    body = mapping.encode(event, 0)

    assert record_fault(body) is None
    assert float(orjson.loads(body)["numbers"]["n"]) == number
