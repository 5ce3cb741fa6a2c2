"""The record's shape: what is meant passes, and whatever else is named with its place."""

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.sandbox.record_shape import record_fault

# A busy machine is no fault of the code.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD: dict[str, Any] = {
    "eventSource": "Segment",
    "eventType": "Order Completed",
    "eventTime": "2026-02-23T22:28:55.111Z",
    "actors": {"Customer": {"userId": "u-1", "anonymousId": "a-1"}},
    "labels": {"campaign_name": "Spring", "empty": ""},
    "numbers": {"revenue": "25.5"},
}

# Text that UTF-8 can carry; a lone surrogate is refused as JSON already.
texts = st.text(st.characters(exclude_categories=["Cs"]))
names = texts.filter(bool)
decimals = st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", fullmatch=True)
json_numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | json_numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
records = st.fixed_dictionaries(
    {
        "eventSource": names,
        "eventType": names,
        "eventTime": names,
        "actors": st.dictionaries(texts, st.dictionaries(texts, names, min_size=1, max_size=3), min_size=1, max_size=3),
        "labels": st.dictionaries(texts, texts, max_size=5),
        "numbers": st.dictionaries(texts, decimals | json_numbers, max_size=5),
    }
)


def fault_with(**changes: Any) -> str:
    """The fault of the good record with some fields replaced."""
    fault = record_fault(orjson.dumps(GOOD | changes))
    assert fault is not None
    return fault


@unhurried
@given(records)
def test_every_record_as_it_is_meant_passes(record: dict[str, Any]) -> None:
    assert record_fault(orjson.dumps(record)) is None


@unhurried
@given(records, st.sampled_from(sorted(GOOD)))
def test_a_record_without_one_of_its_keys_is_refused_by_that_name(record: dict[str, Any], name: str) -> None:
    # given
    del record[name]

    # when
    fault = record_fault(orjson.dumps(record))

    # then
    assert fault is not None
    assert fault.startswith(f"missing {name};")


@unhurried
@given(records, texts.filter(lambda name: name not in GOOD), json_values)
def test_a_record_with_a_key_too_many_is_refused(record: dict[str, Any], name: str, value: Any) -> None:
    fault = record_fault(orjson.dumps(record | {name: value}))

    assert fault is not None
    assert fault.startswith("unknown key ")


@unhurried
@given(records, json_values.filter(lambda value: not isinstance(value, str)))
def test_a_label_that_is_no_string_is_refused_with_its_path(record: dict[str, Any], value: Any) -> None:
    # given
    record["labels"]["plan"] = value

    # when
    fault = record_fault(orjson.dumps(record))

    # then
    assert fault is not None
    assert fault.startswith("labels.plan: a label is a string, not ")


@unhurried
@given(st.binary(max_size=200) | json_values.map(orjson.dumps))
def test_no_body_whatever_raises_an_error(body: bytes) -> None:
    fault = record_fault(body)

    assert fault is not None


@pytest.mark.parametrize("numbers", [{}, {"a": "0", "b": "-1.50", "c": 1, "d": 2.5, "e": 1e30}])
def test_numbers_may_be_decimal_strings_or_json_numbers(numbers: dict[str, Any]) -> None:
    assert record_fault(orjson.dumps(GOOD | {"numbers": numbers})) is None


@pytest.mark.parametrize("text", ["", " 1", "1e5", "1.", ".5", "+1", "NaN", "1,5", "٣", "1\n", "0x1"])
def test_a_numeric_string_that_is_no_plain_decimal_is_refused(text: str) -> None:
    assert fault_with(numbers={"n": text}) == "numbers.n: expected a decimal without an exponent, such as 25.5"


@pytest.mark.parametrize(
    ("value", "kind"), [(True, "a boolean"), (None, "null"), ([1], "an array"), ({"a": 1}, "an object")]
)
def test_a_number_of_another_type_is_refused(value: Any, kind: str) -> None:
    expected = f"numbers.n: a number is a decimal string or a JSON number, not {kind}"

    assert fault_with(numbers={"n": value}) == expected


@pytest.mark.parametrize("name", ["eventSource", "eventType", "eventTime"])
def test_the_plain_fields_are_strings_that_are_not_empty(name: str) -> None:
    assert fault_with(**{name: 5}) == f"{name}: expected a string, not a number"
    assert fault_with(**{name: ""}) == f"{name}: expected a string that is not empty"


def test_the_time_may_be_in_any_format_because_the_mapping_sets_it() -> None:
    assert record_fault(orjson.dumps(GOOD | {"eventTime": "2015-9-24 7:6:23-0700"})) is None


@pytest.mark.parametrize(
    ("actors", "expected"),
    [
        ([], "actors: expected an object of classes, not an array"),
        ({}, "actors: expected at least one class of actor, such as Customer"),
        ({"Customer": "u-1"}, "actors.Customer: expected an object of identifiers, not a string"),
        ({"Customer": {}}, "actors.Customer: expected at least one identifier, such as userId"),
        ({"Customer": {"userId": 7}}, "actors.Customer.userId: an identifier is a string, not a number"),
        ({"Customer": {"userId": ""}}, "actors.Customer.userId: an identifier is not empty; leave it out"),
        ({"A": {"x": "1"}, "B": {"y": None}}, "actors.B.y: an identifier is a string, not null"),
    ],
)
def test_actors_are_classes_of_identifiers_that_are_not_empty(actors: Any, expected: str) -> None:
    assert fault_with(actors=actors) == expected


@pytest.mark.parametrize("name", ["labels", "numbers"])
def test_labels_and_numbers_are_objects(name: str) -> None:
    assert fault_with(**{name: None}).startswith(f"{name}: expected an object of ")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a": NaN}', b'"\\ud800"'])
def test_a_body_that_is_no_json_is_refused_as_such(body: bytes) -> None:
    assert str(record_fault(body)).startswith("the body is not JSON: ")


def test_an_array_of_records_is_refused_because_a_post_carries_one() -> None:
    assert record_fault(orjson.dumps([GOOD])) == "the body is an array; expected one record, a JSON object"
