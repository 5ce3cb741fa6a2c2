"""Nothing is overwritten: what happens where two values end in the same key."""

import orjson
import pytest
from google.protobuf.json_format import ParseDict

from pointillist_destination.v1.event_pb2 import Event
from service.mapping.mapping_file import compile_mapping, load_mapping

BUILT_IN = load_mapping(None)


def texts(segment: dict[str, object], mapping_text: str | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """The labels and the numbers of an event, by the built-in mapping or one in TOML."""
    mapping = compile_mapping(mapping_text, "test") if mapping_text else BUILT_IN
    record = orjson.loads(mapping.encode(ParseDict(segment, Event()), 0))
    return record["labels"], record["numbers"]


def test_a_property_keeps_its_key_and_the_trait_of_that_key_becomes_traits_key() -> None:
    labels, _ = texts({"track": {"properties": {"plan": "new"}, "context": {"traits": {"plan": "old", "email": "e"}}}})

    assert labels == {"plan": "new", "traits_plan": "old", "email": "e"}


def test_a_trait_and_a_property_clash_by_their_final_keys() -> None:
    labels, _ = texts({"track": {"properties": {"a_b": "p"}, "context": {"traits": {"a": {"b": "t"}}}}})

    assert labels == {"a_b": "p", "traits_a_b": "t"}


def test_labels_and_numbers_clash_separately() -> None:
    # a trait is always a label, and a property that is a number is none
    labels, numbers = texts({"track": {"properties": {"age": 31}, "context": {"traits": {"age": 30}}}})

    assert (labels, numbers) == ({"age": "30"}, {"age": "31"})


def test_two_traits_that_a_property_moves_aside_clash_with_each_other() -> None:
    labels, _ = texts(
        {"track": {"properties": {"a_b": "p"}, "context": {"traits": {"a_b": "flat", "a": {"b": "nested"}}}}}
    )

    assert labels == {"a_b": "p", "traits_a_b": "nested", "traits_a_b_2": "flat"}


def test_a_trait_moved_aside_does_not_overwrite_a_trait_that_is_called_so() -> None:
    labels, _ = texts(
        {"track": {"properties": {"plan": "p"}, "context": {"traits": {"plan": "t", "traits_plan": "u"}}}}
    )

    assert labels == {"plan": "p", "traits_plan": "t", "traits_plan_2": "u"}


def test_earlier_rows_win() -> None:
    # given a device key and a property that end in the same key; the device's row is the earlier one
    labels, _ = texts({"track": {"properties": {"device_type": "p"}, "context": {"device": {"type": "ios"}}}})

    assert labels == {"device_type": "ios", "device_type_2": "p"}


def test_within_a_row_the_path_that_sorts_first_wins() -> None:
    labels, _ = texts({"identify": {"traits": {"a_b_c": "3", "a_b": {"c": "2"}, "a": {"b_c": "1"}}}})

    assert labels == {"a_b_c": "1", "a_b_c_2": "2", "a_b_c_3": "3"}


def test_a_suffix_that_is_taken_is_skipped() -> None:
    _, numbers = texts({"identify": {"traits": {"a": {"b": 1}, "a_b": 2, "a_b_2": 3}}})

    assert numbers == {"a_b": "1", "a_b_2": "2", "a_b_2_2": "3"}


def test_a_typed_field_comes_before_its_namesake_in_extra() -> None:
    labels, _ = texts({"track": {"context": {"device": {"type": "typed", "extra": {"type": "extra"}}}}})

    assert labels == {"device_type": "typed", "device_type_2": "extra"}


def test_clashes_do_not_depend_on_the_order_of_keys() -> None:
    traits = [("a_b", "3"), ("a", {"b": "1"}), ("other", "o")]

    assert texts({"identify": {"traits": dict(traits)}}) == texts({"identify": {"traits": dict(traits[::-1])}})


def test_a_thousand_namesakes_each_keep_their_value() -> None:
    # given ten objects of a hundred names each that all flatten to one of a hundred keys
    traits: dict[str, object] = {
        f"x{'_x' * depth}": {f"{'x_' * (9 - depth)}{n}": n for n in range(100)} for depth in range(10)
    }

    _, numbers = texts({"identify": {"traits": traits}})

    assert sorted(map(int, numbers.values())) == sorted(list(range(100)) * 10)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ('rename = {a = "k", b = "k"}', {"k": "1", "k_2": "2"}),
        ('rename = {b = "a"}', {"a": "1", "a_2": "2"}),
    ],
)
def test_renamed_keys_clash_like_others(rows: str, labels: dict[str, str]) -> None:
    mapping = f'[[identify]]\nfrom = "traits"\nto = "labels"\n{rows}\n'

    assert texts({"identify": {"traits": {"b": "2", "a": "1"}}}, mapping)[0] == labels


def test_a_trait_is_known_by_where_it_lies_whatever_row_takes_it() -> None:
    mapping = """
    [[track]]
    from = "properties.plan"
    to = "labels"
    [[track]]
    from = "context"
    to = "labels"
    rename = {"traits.plan" = "plan"}
    """

    labels, _ = texts({"track": {"properties": {"plan": "p"}, "context": {"traits": {"plan": "t"}}}}, mapping)

    assert labels == {"plan": "p", "traits_plan": "t"}


def test_two_rows_of_one_value_keep_both() -> None:
    mapping = '[[identify]]\nfrom = "traits"\nto = "labels"\n[[identify]]\nfrom = "traits.plan"\nto = "labels"\n'

    assert texts({"identify": {"traits": {"plan": "p"}}}, mapping)[0] == {"plan": "p", "plan_2": "p"}


def test_two_rows_of_one_part_of_the_context_keep_both() -> None:
    row = '[[track]]\nfrom = "context.device"\nto = "labels"\n'

    labels, _ = texts({"track": {"context": {"device": {"type": "ios"}}}}, row + row)

    assert labels == {"type": "ios", "type_2": "ios"}
