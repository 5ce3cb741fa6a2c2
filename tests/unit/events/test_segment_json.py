"""Messages of Segment JSON as events: lines, types, ids, bodies, times."""

import json
from typing import Any

import pytest
from google.protobuf import json_format

from pointillist_destination.v1 import event_pb2
from service.events.segment_json import Imported, Refused, Skipped, import_line, import_message
from tests.support.paths import EVENTS


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


# ---- lines ----


@pytest.mark.parametrize("line", [b"", b"\n", b"  \t\r\n", b"\xef\xbb\xbf\n"])
def test_a_blank_line_gives_nothing(line: bytes) -> None:
    assert import_line(line) == []


def test_a_line_with_a_byte_order_mark_is_read() -> None:
    [result] = import_line(b"\xef\xbb\xbf" + json.dumps(track()).encode() + b"\r\n")

    assert isinstance(result, Imported)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"type": "track",', "is not JSON: .* one whole JSON object a line is right"),
        (b'{"type": "track"} {}', "is not JSON"),
        (b'{"userId": "\xff"}', "is not UTF-8: byte 13"),
        ('{"userId": "u"}'.encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "nests too deep"),
        (b"[]", "is an array; a JSON object"),
        (b"5", "is a number"),
        (b"null", "is null"),
        (b'"track"', "is a string"),
        (b"NaN", "is a number"),
    ],
)
def test_a_line_that_is_no_json_object_is_refused_whole(line: bytes, reason: str) -> None:
    [result] = import_line(line)

    assert isinstance(result, Refused)
    [error] = result.errors
    assert error.path == ""
    with pytest.raises(type(error), match=reason):
        raise error


def test_the_real_events_of_segments_libraries_are_taken() -> None:
    results = [result for line in EVENTS.read_bytes().splitlines() for result in import_line(line)]

    assert [type(result).__name__ for result in results].count("Imported") == 19
    assert [result.type for result in results if isinstance(result, Skipped)] == ["page", "page", "group"]
    [without_event] = [result for result in results if isinstance(result, Refused)]
    assert [error.path for error in without_event.errors] == ["event"]


# ---- types ----


@pytest.mark.parametrize("name", ["page", "screen", "group", "alias", "delete", "Track", "IDENTIFY", "", "x\n"])
def test_any_other_type_is_skipped_by_its_name(name: str) -> None:
    assert import_message({"type": name}) == Skipped(name)


@pytest.mark.parametrize("absent", [{}, {"type": None}])
def test_a_message_without_type_is_a_track_where_it_has_an_event(absent: dict[str, Any]) -> None:
    assert imported({"userId": "u", "event": "E", "traits": {}, **absent}).WhichOneof("type") == "track"


@pytest.mark.parametrize("absent", [{}, {"type": None, "event": None, "groupId": None}])
def test_a_message_without_type_is_an_identify_where_it_has_traits(absent: dict[str, Any]) -> None:
    assert imported({"userId": "u", "traits": {}, **absent}).WhichOneof("type") == "identify"


@pytest.mark.parametrize(
    "message",
    [{"userId": "u"}, {"userId": "u", "traits": {}, "groupId": "g"}, {"userId": "u", "traits": None}],
)
def test_a_message_whose_type_nothing_tells_is_refused(message: dict[str, Any]) -> None:
    faults = refused(message)

    assert list(faults) == ["type"]
    assert "type is missing" in faults["type"]


@pytest.mark.parametrize("kind", [5, True, [], {"a": 1}, "\ud800"])
def test_a_type_that_is_no_text_is_refused(kind: object) -> None:
    assert list(refused(track(type=kind))) == ["type"]


# ---- ids ----


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("12345", "12345"),
        ("0", "0"),
        ("-0.0", "0"),
        ("-7", "-7"),
        ("12345.0", "12345"),
        ("1e5", "100000"),
        ("1.5", "1.5"),
        ("0.000001", "0.000001"),
        ("1e22", "10000000000000000000000"),
        ("12345678901234567890", "12345678901234567890"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("-9223372036854775809", "-9223372036854775809"),
        ('" u "', " u "),
    ],
)
def test_an_id_keeps_every_digit_and_has_no_exponent(written: str, text: str) -> None:
    line = f'{{"userId":{written},"anonymousId":{written},"messageId":{written},"event":"E","batch":null}}'

    [result] = import_line(line.encode())

    assert isinstance(result, Imported)
    ids = result.event.track
    assert (ids.user_id, ids.anonymous_id, ids.message_id) == (text, text, text)


@pytest.mark.parametrize("value", [{}, {"a": 1}, [], ["u"], True, False, float("nan"), float("inf"), 10**400, "\ud800"])
@pytest.mark.parametrize("name", ["userId", "anonymousId", "messageId"])
def test_an_id_that_is_neither_text_nor_number_is_refused(name: str, value: object) -> None:
    assert list(refused({"type": "track", "event": "E", "userId": "u", name: value})) == [name]


@pytest.mark.parametrize("ids", [{}, {"userId": None}, {"userId": "", "anonymousId": ""}, {"anonymousId": None}])
def test_a_message_of_nobody_is_refused(ids: dict[str, Any]) -> None:
    faults = refused({"type": "identify", **ids})

    assert list(faults) == ["userId"]
    assert "no userId and no anonymousId" in faults["userId"]


@pytest.mark.parametrize("ids", [{"anonymousId": "a", "userId": ""}, {"anonymousId": 7}, {"userId": 0}])
def test_either_id_is_enough(ids: dict[str, Any]) -> None:
    assert imported({"type": "identify", **ids})


def test_a_message_id_may_have_a_hundred_characters_whatever_their_bytes() -> None:
    assert imported(track(messageId="🐎" * 100)).track.message_id == "🐎" * 100


@pytest.mark.parametrize("message_id", ["🐎" * 101, 10**100])
def test_a_longer_message_id_is_refused_with_its_length(message_id: object) -> None:
    assert "101 characters" in refused(track(messageId=message_id))["messageId"]


# ---- event, properties, traits, integrations ----


@pytest.mark.parametrize("event", [None, ""])
def test_a_track_without_event_is_refused(event: object) -> None:
    assert "track without event" in refused(track(event=event))["event"]


@pytest.mark.parametrize("event", [5, 0, False, [], {}, ["E"]])
def test_an_event_that_is_no_string_is_refused(event: object) -> None:
    assert "a string" in refused(track(event=event))["event"]


@pytest.mark.parametrize("value", ["x", "", 5, True, [], [{}]])
def test_properties_and_traits_that_are_no_object_are_refused(value: object) -> None:
    assert list(refused(track(properties=value))) == ["properties"]
    assert list(refused(identify(traits=value))) == ["traits"]


def test_null_properties_traits_context_integrations_and_times_are_absent() -> None:
    nulls = dict.fromkeys(("context", "integrations", "timestamp", "originalTimestamp", "sentAt", "receivedAt"))

    assert imported(track(properties=None, **nulls)) == imported(track())
    assert imported(identify(traits=None, **nulls)) == imported(identify())
    assert not imported(identify(traits=None)).identify.HasField("traits")


def test_empty_objects_are_there_and_empty() -> None:
    message = imported(track(properties={}, context={}, integrations={})).track

    assert message.HasField("properties")
    assert message.HasField("context")
    assert message.HasField("integrations")


def test_nulls_inside_of_free_form_objects_are_kept() -> None:
    event = imported(track(properties={"a": None, "b": [None]}, integrations={"All": False, "Pointillist": None}))

    assert json_format.MessageToDict(event.track.properties) == {"a": None, "b": [None]}
    assert json_format.MessageToDict(event.track.integrations) == {"All": False, "Pointillist": None}


def test_every_kind_of_json_value_is_kept() -> None:
    values = {"s": "", "i": 1, "f": 0.5, "t": True, "n": None, "o": {}, "a": [], "deep": [{"x": ["y", {"z": 0}]}]}

    assert json_format.MessageToDict(imported(identify(traits=values)).identify.traits) == values


def test_integers_beyond_a_doubles_reach_become_the_nearest_double() -> None:
    [result] = import_line(b'{"userId":"u","traits":{"a":9007199254740993,"b":123456789012345678901234567890}}')

    assert isinstance(result, Imported)
    traits = result.event.identify.traits
    assert (traits["a"], traits["b"]) == (9007199254740992.0, 1.2345678901234568e29)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1" + "0" * 400, "9" * 5_000])
def test_a_number_that_no_double_holds_is_refused_at_its_path(number: str) -> None:
    [result] = import_line(f'{{"userId":"u","event":"E","properties":{{"p":[0,{{"q":{number}}}]}}}}'.encode())

    assert isinstance(result, Refused)
    assert [error.path for error in result.errors] == ["properties.p[1].q"]


def test_lone_surrogates_are_refused_wherever_they_stand() -> None:
    line = rb"""{"type":"track","userId":"\ud800","event":"\udfff","properties":{"a":["\ud800x"],"k\udc00":1},
        "context":{"ip":"\ud800","app":{"name":"\ud800"},"x":"\ud800"},"integrations":{"\ud800":true},"o\ud800":1}"""

    [result] = import_line(line)

    assert isinstance(result, Refused)
    assert [error.path for error in result.errors] == [
        "userId",
        "event",
        "properties.a[0]",
        r"properties.k\udc00",
        "context.ip",
        "context.app.name",
        "context.x",
        r"integrations.\ud800",
        r"o\ud800",
    ]
    assert "\n".join(map(str, result.errors)).encode()


def test_a_surrogate_pair_is_one_character() -> None:
    [result] = import_line(rb'{"userId":"\ud83d\ude00","event":"E","properties":{"bad":1e999}}')
    assert isinstance(result, Refused)

    [result] = import_line(rb'{"userId":"\ud83d\ude00","event":"E"}')
    assert isinstance(result, Imported)
    assert result.event.track.user_id == "😀"


@pytest.mark.parametrize("integrations", [True, False, [], "x", 5])
def test_integrations_that_are_no_object_are_absent_and_named(integrations: object) -> None:
    result = import_message(track(integrations=integrations))

    assert isinstance(result, Imported)
    assert not result.event.track.HasField("integrations")
    assert result.ignored == ("integrations",)


# ---- times ----


def test_each_time_goes_to_its_own_field() -> None:
    event = imported(
        track(
            timestamp="2024-01-01", originalTimestamp=0, sentAt="2024-01-03T00:00:00.5Z", receivedAt=1_704_326_400_000
        )
    )

    times = event.track
    assert times.timestamp.ToJsonString() == "2024-01-01T00:00:00Z"
    assert times.HasField("original_timestamp")
    assert times.original_timestamp.ToJsonString() == "1970-01-01T00:00:00Z"
    assert times.sent_at.ToJsonString() == "2024-01-03T00:00:00.500Z"
    assert times.received_at.ToJsonString() == "2024-01-04T00:00:00Z"


@pytest.mark.parametrize("name", ["timestamp", "originalTimestamp", "sentAt", "receivedAt"])
def test_a_time_that_cannot_be_read_is_refused_and_an_empty_one_is_absent(name: str) -> None:
    assert "RFC 3339" in refused(identify(**{name: "Fri Feb 23 2024"}))[name]
    assert imported(identify(**{name: ""})) == imported(identify(**{name: None}))
