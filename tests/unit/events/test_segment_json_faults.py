"""Every fault of a message at once, the limits, and what is named as ignored."""

import json
from typing import Any

import pytest

from pointillist_destination.v1 import event_pb2
from service.events.segment_json import Imported, Refused, import_line, import_message


def track(**fields: Any) -> dict[str, Any]:
    return {"type": "track", "userId": "u", "event": "E", **fields}


def identify(**fields: Any) -> dict[str, Any]:
    return {"type": "identify", "userId": "u", **fields}


def imported(message: object) -> event_pb2.Event:
    result = import_message(message)
    assert isinstance(result, Imported), result
    return result.event


def refused(message: object) -> dict[str, str]:
    """Imports a message that has faults; gives each fault's reason by its path."""
    result = import_message(message)
    assert isinstance(result, Refused), result
    return {error.path: error.reason for error in result.errors}


def nested(levels: int, leaf: object = 1) -> dict[str, Any]:
    """Builds objects in objects, so many levels of them."""
    value: dict[str, Any] = {"a": leaf}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("place", ["properties", "integrations"])
def test_thirty_two_levels_are_taken_and_can_be_sent_and_the_next_is_refused(place: str) -> None:
    event = imported(track(**{place: nested(32)}))
    assert event_pb2.Event.FromString(event.SerializeToString()) == event

    faults = refused(track(**{place: nested(33)}))
    assert list(faults) == [place + ".a" * 32]
    assert "32" in next(iter(faults.values()))


def test_arrays_count_as_levels_too() -> None:
    array: list[Any] = []
    for _ in range(30):
        array = [array]
    assert imported(track(properties={"a": array}))

    assert list(refused(track(properties={"a": [array]}))) == ["properties.a" + "[0]" * 31]


def test_a_line_that_nests_beyond_any_parser_is_refused() -> None:
    [result] = import_line(b'{"userId":"u","event":"E","properties":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001)

    assert isinstance(result, Refused)


def test_an_event_of_32_kib_is_taken_and_one_byte_more_is_refused_with_its_size() -> None:
    frame = imported(track(properties={"a": "x" * 30_000})).ByteSize() - 30_000
    largest = track(properties={"a": "x" * (32_768 - frame)})
    assert imported(largest).ByteSize() == 32_768

    largest["properties"]["a"] += "x"
    assert "32769 bytes" in refused(largest)[""]


# ---- faults and what is ignored ----


def test_every_fault_is_told_at_once() -> None:
    faults = refused(
        {
            "type": "track",
            "userId": {},
            "messageId": "m" * 101,
            "properties": {"a": float("nan"), "b": [float("inf")], "c": nested(32)},
            "context": {"device": {"x": float("nan")}, "location": {"latitude": 10**400}, "os": {"a": {"b": "\udc00"}}},
            "integrations": {"x": "y" * 40_000},
            "timestamp": "x",
            "sentAt": [],
        }
    )

    assert list(faults) == [
        "userId",
        "messageId",
        "event",
        "properties.a",
        "properties.b[0]",
        "properties.c" + ".a" * 31,
        "context.device.x",
        "context.location.latitude",
        "context.os.a.b",
        "timestamp",
        "sentAt",
        "",
    ]


def test_the_faults_of_a_message_without_type_are_told_too() -> None:
    assert list(refused({"timestamp": "x"})) == ["type", "userId", "timestamp"]


def test_values_that_json_has_not_are_refused() -> None:
    faults = refused(track(properties={"a": (1,), "b": {5: 1}, "c": b"x"}))

    assert list(faults) == ["properties.a", "properties.b.5", "properties.c"]
    assert "tuple" in faults["properties.a"]


def test_a_path_fits_on_one_line_whatever_the_keys() -> None:
    [(path, _)] = refused(track(properties={"a\n\x1b[31m" + "k" * 10_000: float("nan")})).items()

    assert path.isprintable()
    assert len(path) < 200


def test_top_level_keys_without_a_place_are_named_and_nulls_and_the_type_are_not() -> None:
    result = import_message(
        track(channel="web", version=1, writeKey="w", traits={"a": 1}, groupId=None, context="x", user_id="u")
    )

    assert isinstance(result, Imported)
    assert result.ignored == ("channel", "version", "writeKey", "traits", "context", "user_id")


def test_an_identify_has_no_place_for_what_a_track_has() -> None:
    result = import_message(identify(event="E", properties={}))

    assert isinstance(result, Imported)
    assert result.ignored == ("event", "properties")


def test_the_write_key_is_never_repeated() -> None:
    message = {"writeKey": "SECRET-KEY", "userId": [], "timestamp": "x", "properties": "p"}

    for line in (
        json.dumps(message).encode(),
        json.dumps({"batch": [message], **message}).encode(),
        b'{"writeKey":"SECRET-KEY',
    ):
        assert "SECRET-KEY" not in repr([getattr(result, "errors", ()) for result in import_line(line)])
