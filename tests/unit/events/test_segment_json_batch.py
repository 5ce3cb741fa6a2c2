"""Bodies of Segment's batch API, and what they say of all their items."""

import json
from typing import Any

import pytest
from google.protobuf import json_format

from service.events.segment_json import Imported, Refused, Skipped, import_line


def import_body(**body: Any) -> list[Imported | Skipped | Refused]:
    return import_line(json.dumps(body).encode())


def imported_item(item: dict[str, Any], **outer: Any) -> dict[str, Any]:
    """Imports a batch of one track; gives it as the contract's JSON."""
    [result] = import_body(batch=[{"userId": "u", "event": "E", **item}], **outer)
    assert isinstance(result, Imported), result
    as_json: dict[str, Any] = json_format.MessageToDict(result.event.track)
    return as_json


def test_a_batch_gives_one_result_an_item_in_their_order() -> None:
    results = import_body(batch=[{"userId": "u", "event": "E"}, {"type": "page"}, {"userId": []}, 5, None])

    assert [type(result) for result in results] == [Imported, Skipped, Refused, Refused, Refused]


def test_an_empty_batch_gives_nothing() -> None:
    assert import_body(batch=[]) == []


def test_a_fault_in_an_item_has_the_item_in_its_path() -> None:
    results = import_body(batch=[{}, [], {"type": "track", "userId": {}, "properties": [], "context": {"x": 1}}])

    paths = [[error.path for error in result.errors] for result in results if isinstance(result, Refused)]
    assert paths == [
        ["batch[0].type", "batch[0].userId"],
        ["batch[1]"],
        ["batch[2].userId", "batch[2].event", "batch[2].properties"],
    ]


@pytest.mark.parametrize("batch", [{}, "x", 5, True])
def test_a_batch_that_is_no_array_is_refused(batch: object) -> None:
    [result] = import_body(batch=batch)

    assert isinstance(result, Refused)
    assert [error.path for error in result.errors] == ["batch"]


def test_a_message_with_a_type_is_no_batch() -> None:
    [result] = import_body(type="track", userId="u", event="E", batch=[{}])

    assert isinstance(result, Imported)
    assert result.ignored == ("batch",)


def test_the_outer_context_and_integrations_are_merged_deeply_under_the_items_own() -> None:
    item = imported_item(
        {
            "context": {"device": {"type": "phone"}, "page": {"url": "own"}, "personas": {"b": 2}},
            "integrations": {"Pointillist": None, "Warehouses": {"all": False}},
        },
        context={"device": {"type": "browser", "id": "d"}, "ip": "192.0.2.1", "personas": {"a": 1, "b": 1}},
        integrations={"All": False, "Pointillist": False, "Warehouses": {"all": True, "w": 1}},
    )

    assert item["context"] == {
        "device": {"type": "phone", "id": "d"},
        "page": {"url": "own"},
        "ip": "192.0.2.1",
        "extra": {"personas": {"a": 1, "b": 2}},
    }
    assert item["integrations"] == {"All": False, "Pointillist": None, "Warehouses": {"all": False, "w": 1}}


def test_a_null_in_an_items_context_lets_the_outer_value_show_and_one_in_its_traits_does_not() -> None:
    item = imported_item(
        {"context": {"ip": None, "device": {"id": None}, "traits": {"plan": None}}},
        context={"ip": "192.0.2.1", "device": {"id": "d"}, "traits": {"plan": "basic"}},
    )

    assert item["context"] == {"ip": "192.0.2.1", "device": {"id": "d"}, "traits": {"plan": None}}


@pytest.mark.parametrize("own", [None, True, "x", []])
def test_an_item_without_objects_of_its_own_has_the_outer_ones(own: object) -> None:
    [result] = import_body(
        batch=[{"userId": "u", "event": "E", "context": own, "integrations": own}],
        context={"ip": "192.0.2.1"},
        integrations={"All": False},
    )

    assert isinstance(result, Imported)
    assert result.event.track.context.ip == "192.0.2.1"
    assert result.event.track.integrations["All"] is False
    assert result.ignored == (() if own is None else ("context", "integrations"))


@pytest.mark.parametrize("absent", [{}, {"sentAt": None}, {"sentAt": ""}])
def test_the_outer_sent_at_is_for_items_without_one(absent: dict[str, Any]) -> None:
    assert imported_item(absent, sentAt="2024-01-01T00:00:00Z")["sentAt"] == "2024-01-01T00:00:00Z"
    assert imported_item({"sentAt": "2024-01-02T00:00:00Z"}, sentAt="x")["sentAt"] == "2024-01-02T00:00:00Z"


def test_outer_keys_without_a_place_are_named_with_each_item() -> None:
    [result] = import_body(
        batch=[{"userId": "u", "event": "E", "channel": "web", "writeKey": "w"}], writeKey="w", timestamp="t", context=5
    )

    assert isinstance(result, Imported)
    assert result.ignored == ("channel", "writeKey", "timestamp", "context")


def test_an_outer_key_that_no_output_could_encode_is_named_escaped() -> None:
    [result] = import_line(rb'{"batch":[{"userId":"u","event":"E"}],"k\ud800":1}')

    assert isinstance(result, Imported)
    assert result.ignored == (r"k\ud800",)


def test_outer_objects_that_nest_without_end_do_no_harm() -> None:
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    line = b'{"batch":[{"userId":"u","event":"E","context":%b}],"context":%b}' % (deep, deep)

    [result] = import_line(line)

    assert isinstance(result, Refused)
    assert result.errors[0].path == "batch[0].context" + ".a" * 32


def test_a_long_numeric_id_in_an_item_keeps_every_digit() -> None:
    [result, _] = import_line(b'{"batch":[{"userId":123456789012345678901234567890,"event":"E"},7]}')

    assert isinstance(result, Imported)
    assert result.event.track.user_id == "123456789012345678901234567890"
