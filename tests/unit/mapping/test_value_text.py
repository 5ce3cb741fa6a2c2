"""The text of one value."""

import math
import re

import orjson
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from service.mapping.value_text import Scalar, array_text, number_text, scalar_text, value_text

# minus zero is written as zero, so that it would not read back as itself
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def array(values: list[object]) -> ListValue:
    return value(values).list_value


def value(json: object) -> Value:
    return ParseDict({"value": json}, Struct()).fields["value"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (30.0, "30"),
        (25.5, "25.5"),
        (0.000001, "0.000001"),
        (1e-7, "0.0000001"),
        (-1.5e-7, "-0.00000015"),
        (0.1 + 0.2, "0.30000000000000004"),
        (0.0, "0"),
        (-0.0, "0"),
        (-1.0, "-1"),
        (1e15, "1000000000000000"),
        (9007199254740993.0, "9007199254740992"),
        (9999999999999998.0, "9999999999999998"),
        (1e16, "10000000000000000"),
        (1e21, "1000000000000000000000"),
        (1.7976931348623157e308, "17976931348623157" + "0" * 292),
        (5e-324, "0." + "0" * 323 + "5"),
    ],
)
def test_a_number_is_its_shortest_decimal_without_exponent(number: float, text: str) -> None:
    assert number_text(number) == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_has_no_text(number: float) -> None:
    assert number_text(number) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_text_of_a_number_reads_back_as_the_same_number(number: float) -> None:
    text = number_text(number)

    assert text is not None
    assert float(text) == number
    assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", text)
    assert text != "-0"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_text_of_a_number_has_no_more_digits_than_it_needs(number: float) -> None:
    def significant(text: str) -> str:
        return text.partition("e")[0].replace("-", "").replace(".", "").strip("0")

    assert significant(number_text(number) or "") == significant(repr(number))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1, "two", True, None], '[1,"two",true,null]'),
        ([None], "[null]"),
        ([[]], "[[]]"),
        ([{}], "[{}]"),
        (["", 0, False], '["",0,false]'),
        ([-0.0, 2.50, 1e21, 1e-7, 5e-5], "[0,2.5,1000000000000000000000,0.0000001,0.00005]"),
        ([{"b": 1, "a": {"z": None, "y": []}, "B": 2}], '[{"B":2,"a":{"y":[],"z":null},"b":1}]'),
        (['quote " and Zürich 🎉'], '["quote \\" and Zürich 🎉"]'),
        ([{"\U00010000": 1, "\uffff": 2}], '[{"\uffff":2,"\U00010000":1}]'),
    ],
)
def test_an_array_is_its_compact_json_text_with_keys_sorted_by_code_point(values: list[object], text: str) -> None:
    assert array_text(array(values)) == text


def test_an_empty_array_has_no_text() -> None:
    assert array_text(ListValue()) is None


def test_a_number_that_json_has_not_and_a_value_of_no_kind_are_null_inside_an_array() -> None:
    values = ListValue(values=[Value(number_value=math.nan), Value(number_value=-math.inf), Value()])

    assert array_text(values) == "[null,null,null]"


@given(st.lists(JSON, min_size=1, max_size=5))
def test_the_text_of_an_array_reads_back_as_the_array_and_has_no_exponent(values: list[object]) -> None:
    text = array_text(array(values))

    assert text is not None
    assert array(orjson.loads(text)) == array(values)
    without_strings = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    assert not re.search(r"\d[eE]|\.0\b", without_strings)


@pytest.mark.parametrize(
    ("given_value", "text"),
    [
        (Value(string_value="x"), "x"),
        (Value(string_value=""), ""),
        (Value(number_value=0), "0"),
        (Value(bool_value=True), "true"),
        (Value(bool_value=False), "false"),
        (Value(null_value=0), None),  # type: ignore[arg-type]  # the enum's only value, as an int
        (Value(), None),
        (value({"a": 1}), None),
        (value([1]), "[1]"),
        (value([]), None),
    ],
    ids=str,
)
def test_a_value_of_a_struct_has_the_text_of_its_kind(given_value: Value, text: str | None) -> None:
    assert value_text(given_value, given_value.WhichOneof("kind")) == text


@pytest.mark.parametrize(
    ("scalar", "text"),
    [
        ("", ""),
        ("ios", "ios"),
        (True, "true"),
        (False, "false"),
        (0.0, "0"),
        (-76.9411617, "-76.9411617"),
        (math.nan, None),
        (Timestamp(seconds=1, nanos=999_999_999), "1970-01-01T00:00:01.999Z"),
    ],
    ids=str,
)
def test_a_typed_field_has_the_text_of_its_type(scalar: Scalar, text: str | None) -> None:
    assert scalar_text(scalar) == text
