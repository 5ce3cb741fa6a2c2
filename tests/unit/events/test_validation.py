"""Validation: every fault of an event at once, each with its path."""

import math
from collections.abc import Callable

import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from pointillist_destination.v1 import event_pb2
from service.events.validation import (
    MAX_DEPTH,
    MAX_EVENT_SIZE,
    MAX_MESSAGE_ID,
    MAX_NANOS,
    MAX_PATH,
    MAX_SECONDS,
    MAX_VIOLATIONS,
    MIN_SECONDS,
)
from service.events.validation import violations as violations_of
from service.intake.acceptance import serialise
from tests.support.events import identify, track

NOT_FINITE = [math.nan, math.inf, -math.inf]


def violations(message: event_pb2.Track | event_pb2.Identify) -> dict[str, str]:
    """The faults of a message, by path."""
    found = violations_of(message, serialise(message))
    assert len({field for field, _ in found}) == len(found)
    return dict(found)


def nested(levels: int, innermost: object = "x") -> dict[str, object]:
    """An object of so many levels: itself, and one in the other; the innermost value is no level."""
    value: object = innermost
    for _ in range(levels):
        value = {"a": value}
    assert isinstance(value, dict)
    return value


def nested_lists(levels: int) -> Struct:
    """An object whose one value is an array in an array: so many levels, the object included."""
    value = Value(string_value="x")
    for _ in range(levels - 1):
        value = Value(list_value=ListValue(values=[value]))
    return Struct(fields={"a": value})


@pytest.mark.parametrize("make", [track, identify])
def test_a_good_event_has_no_fault(make: Callable[[], event_pb2.Track | event_pb2.Identify]) -> None:
    assert violations(make()) == {}


def test_an_anonymous_id_is_enough() -> None:
    assert violations(track(user_id="", anonymous_id="a-1")) == {}


def test_an_event_without_any_id_is_refused() -> None:
    assert "one of the two is required" in violations(track(user_id=""))["track.user_id"]
    assert violations(identify(user_id="")).keys() == {"identify.user_id"}


def test_a_track_without_the_events_name_is_refused() -> None:
    assert violations(track(event="")).keys() == {"track.event"}


def test_every_fault_is_found_at_once() -> None:
    message = track(
        user_id="",
        event="",
        message_id="x" * (MAX_MESSAGE_ID + 1),
        properties={"price": math.nan, "list": [1, math.inf]},
        timestamp=Timestamp(seconds=MAX_SECONDS + 1, nanos=-1),
    )
    message.context.location.latitude = math.inf
    assert violations(message).keys() == {
        "track.user_id",
        "track.event",
        "track.message_id",
        "track.timestamp.seconds",
        "track.timestamp.nanos",
        "track.properties.price",
        "track.properties.list[1]",
        "track.context.location.latitude",
    }


@pytest.mark.parametrize("character", ["x", "é", "😀"])
def test_a_message_id_may_have_a_hundred_code_points(character: str) -> None:
    assert violations(track(message_id=character * MAX_MESSAGE_ID)) == {}
    assert "101 characters" in violations(track(message_id=character * 101))["track.message_id"]


@pytest.mark.parametrize("number", NOT_FINITE)
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(number: float) -> None:
    assert violations(track(properties={"a": {"b": [{"c": number}]}})).keys() == {"track.properties.a.b[0].c"}
    assert violations(identify(traits={"a": number})).keys() == {"identify.traits.a"}
    assert violations(track(integrations={"a": number})).keys() == {"track.integrations.a"}
    message = track()
    message.context.screen.density = number
    message.context.extra["a"] = number
    message.context.device.extra["b"] = number
    assert violations(message).keys() == {
        "track.context.screen.density",
        "track.context.extra.a",
        "track.context.device.extra.b",
    }


@pytest.mark.parametrize("number", [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -0.0, 2.0**53])
def test_a_number_at_the_edge_of_what_is_finite_is_no_fault(number: float) -> None:
    assert violations(track(properties={"a": number})) == {}


def test_text_that_looks_like_a_number_that_is_not_finite_is_no_fault() -> None:
    assert violations(track(properties={"\x7f": "\U0010ffff\x7f", "ÿ\x7f": "*2\n" * 99})) == {}


@pytest.mark.parametrize("field", ["traits", "integrations"])
def test_thirty_two_levels_are_allowed_and_no_more(field: str) -> None:
    assert violations(identify(**{field: nested(MAX_DEPTH)})) == {}
    [(path, description)] = violations(identify(**{field: nested(MAX_DEPTH + 1)})).items()
    assert path == f"identify.{field}" + ".a" * MAX_DEPTH
    assert "32 levels" in description


def test_arrays_are_levels_too() -> None:
    assert violations(track(properties=nested_lists(MAX_DEPTH))) == {}
    assert violations(track(properties=nested_lists(MAX_DEPTH + 1))).keys() == {
        "track.properties.a" + "[0]" * (MAX_DEPTH - 1)
    }


@pytest.mark.parametrize("innermost", [{}, []])
def test_an_empty_object_or_array_is_a_level_too(innermost: object) -> None:
    assert violations(track(properties=nested(MAX_DEPTH - 1, innermost))) == {}
    assert len(violations(track(properties=nested(MAX_DEPTH, innermost)))) == 1


def test_an_event_of_32_kib_is_allowed_and_no_more() -> None:
    def sized(size: int) -> event_pb2.Track:
        return track(properties={"a": "x" * size})

    overhead = event_pb2.Event(track=sized(MAX_EVENT_SIZE // 2)).ByteSize() - MAX_EVENT_SIZE // 2
    assert violations(sized(MAX_EVENT_SIZE - overhead)) == {}
    assert "32769 bytes" in violations(sized(MAX_EVENT_SIZE - overhead + 1))["track"]


def test_the_values_of_an_event_that_is_too_large_are_not_looked_at() -> None:
    assert violations(track(properties={"a": "x" * MAX_EVENT_SIZE, "b": math.nan})).keys() == {"track"}


@pytest.mark.parametrize("count", [MAX_VIOLATIONS - 1, MAX_VIOLATIONS])
def test_so_many_faults_are_all_told(count: int) -> None:
    found = violations(track(properties={"list": [math.nan] * count}))
    assert found.keys() == {f"track.properties.list[{index}]" for index in range(count)}


@pytest.mark.parametrize("count", [MAX_VIOLATIONS + 1, 1000])
def test_of_more_faults_the_first_are_told_and_that_there_are_more(count: int) -> None:
    found = violations_of(message := track(user_id="", properties={"list": [math.nan] * count}), serialise(message))
    assert len(found) == MAX_VIOLATIONS + 1
    assert found[0].field == "track.user_id"
    assert found[-1] == ("track", f"has more faults than these {MAX_VIOLATIONS}")


@pytest.mark.parametrize("key", ["k" * 15_000, "é" * 1_000, "a." * 1_000])
def test_a_long_path_is_cut_at_its_end(key: str) -> None:
    message = track(properties={"short": {key: [{"deeper": math.nan}] * 9}})
    for path, _ in violations_of(message, serialise(message)):
        assert len(path) == MAX_PATH
        assert path.startswith(f"track.properties.short.{key[:100]}")
        assert path.endswith("…")


@given(length=st.integers(MAX_PATH - 30, MAX_PATH + 5))
def test_a_path_is_whole_while_it_is_short_enough(length: int) -> None:
    whole = f"track.properties.{'k' * (length - 20)}[0]"
    [path] = violations(track(properties={"k" * (length - 20): [math.nan]}))
    assert path == whole if len(whole) < MAX_PATH else path == f"{whole[: MAX_PATH - 1]}…"


@pytest.mark.parametrize("field", ["timestamp", "original_timestamp", "sent_at", "received_at"])
def test_a_timestamp_is_within_the_years_1_to_9999(field: str) -> None:
    for good in (Timestamp(seconds=MIN_SECONDS), Timestamp(seconds=MAX_SECONDS, nanos=MAX_NANOS), Timestamp()):
        assert violations(track(**{field: good})) == {}
    for seconds in (MIN_SECONDS - 1, MAX_SECONDS + 1, 2**63 - 1, -(2**63)):
        assert violations(track(**{field: Timestamp(seconds=seconds)})).keys() == {f"track.{field}.seconds"}
    for nanos in (-1, MAX_NANOS + 1, 2**31 - 1):
        assert violations(track(**{field: Timestamp(nanos=nanos)})).keys() == {f"track.{field}.nanos"}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


def is_good(value: object, depth: int = 1) -> bool:
    """The rule, written the obvious way."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth <= MAX_DEPTH and all(is_good(item, depth + 1) for item in inner)
    return True


@given(leaf=JSON, levels=st.integers(0, MAX_DEPTH + 2), is_list=st.booleans())
def test_the_quick_look_at_the_bytes_agrees_with_the_rule(leaf: object, levels: int, is_list: bool) -> None:
    # given
    value = leaf
    for _ in range(levels):
        value = [value] if is_list else {"k": value}
    properties = {"p": value}

    # when
    found = violations(track(properties=properties))

    # then
    assert (found == {}) == is_good(properties)
