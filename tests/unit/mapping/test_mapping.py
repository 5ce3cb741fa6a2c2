"""The built-in mapping: what a record holds and how it is written."""

import math
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from pointillist_destination.v1.event_pb2 import Event
from service.mapping.mapping_file import compile_mapping, load_mapping
from tests.support.paths import EVENTS

ACCEPTED_AT = 1_771_885_735_111  # 2026-02-23T22:28:55.111Z
BUILT_IN = load_mapping(None)
SAMPLES = [
    segment
    for segment in map(orjson.loads, EVENTS.read_bytes().splitlines())
    if segment["type"] in ("identify", "track")
]


def event(segment: dict[str, object]) -> Event:
    return ParseDict(segment, Event(), ignore_unknown_fields=True)


def track(**fields: object) -> Event:
    return event({"track": {"userId": "u-1", "event": "Order Completed", **fields}})


def identify(**fields: object) -> Event:
    return event({"identify": {"userId": "u-1", **fields}})


def labels(mapped: Event) -> dict[str, str]:
    texts: dict[str, str] = orjson.loads(BUILT_IN.encode(mapped, ACCEPTED_AT))["labels"]
    return texts


def numbers(mapped: Event) -> dict[str, str]:
    texts: dict[str, str] = orjson.loads(BUILT_IN.encode(mapped, ACCEPTED_AT))["numbers"]
    return texts


def test_a_track_becomes_the_record_of_the_wire_example() -> None:
    order = track(
        anonymousId="a-1",
        timestamp="2026-02-23T22:28:55.111Z",
        properties={"revenue": 25.5, "currency": "USD"},
        context={
            "campaign": {"name": "Spring"},
            "device": {"type": "ios"},
            "location": {"city": "Zurich"},
            "traits": {"plan": "premium"},
        },
    )

    assert BUILT_IN.encode(order, 0) == (
        b'{"eventSource":"Segment","eventType":"Order Completed","eventTime":"2026-02-23T22:28:55.111Z",'
        b'"actors":{"Customer":{"userId":"u-1","anonymousId":"a-1"}},'
        b'"labels":{"campaign_name":"Spring","currency":"USD","device_type":"ios","location_city":"Zurich",'
        b'"plan":"premium"},"numbers":{"revenue":"25.5"}}'
    )


def test_an_identify_becomes_a_record_of_its_traits() -> None:
    mapped = identify(
        traits={"email": "peter@example.com", "logins": 5, "beta": True, "address": {"city": "Zurich"}},
        context={"device": {"type": "ios"}, "campaign": {"name": "Spring"}, "location": {"city": "Bern"}},
    )

    assert BUILT_IN.encode(mapped, ACCEPTED_AT) == (
        b'{"eventSource":"Segment","eventType":"identify","eventTime":"2026-02-23T22:28:55.111Z",'
        b'"actors":{"Customer":{"userId":"u-1"}},'
        b'"labels":{"address_city":"Zurich","beta":"true","email":"peter@example.com"},"numbers":{"logins":"5"}}'
    )


def test_labels_and_numbers_are_always_there_and_no_key_more() -> None:
    record = orjson.loads(BUILT_IN.encode(identify(), ACCEPTED_AT))

    assert list(record) == ["eventSource", "eventType", "eventTime", "actors", "labels", "numbers"]
    assert (record["labels"], record["numbers"]) == ({}, {})


@pytest.mark.parametrize(
    ("ids", "actors"),
    [
        ({"userId": "u"}, {"Customer": {"userId": "u"}}),
        ({"anonymousId": "a"}, {"Customer": {"anonymousId": "a"}}),
        ({"userId": "", "anonymousId": "a"}, {"Customer": {"anonymousId": "a"}}),
        ({"userId": "", "anonymousId": ""}, {}),
    ],
)
def test_an_absent_or_empty_id_is_left_out(ids: dict[str, str], actors: dict[str, object]) -> None:
    record = orjson.loads(BUILT_IN.encode(event({"identify": ids}), ACCEPTED_AT))

    assert record["actors"] == actors


def test_what_is_known_of_the_context_of_an_identify_is_not_mapped() -> None:
    mapped = identify(context={"traits": {"plan": "premium"}, "device": {"id": "d"}, "ip": "8.8.8.8"})

    assert labels(mapped) == {}


def test_every_value_of_location_campaign_device_and_context_traits_is_a_label() -> None:
    mapped = track(
        context={
            "location": {"latitude": 40.5, "speed": 0, "extra": {"altitude": 12}},
            "device": {"adTrackingEnabled": False, "advertisingId": "7A", "extra": {"cores": 6}},
            "campaign": {"term": "", "extra": {"id": 998, "custom": "zz"}},
            "traits": {"age": 30, "vip": True},
        }
    )

    assert labels(mapped) == {
        "location_latitude": "40.5",
        "location_speed": "0",
        "location_altitude": "12",
        "device_adTrackingEnabled": "false",
        "device_advertisingId": "7A",
        "device_cores": "6",
        "campaign_term": "",
        "campaign_id": "998",
        "campaign_custom": "zz",
        "age": "30",
        "vip": "true",
    }
    assert numbers(mapped) == {}


def test_what_lies_in_the_contexts_extra_under_a_parts_name_is_part_of_it() -> None:
    mapped = track(context={"extra": {"campaign": {"id": "998"}, "traits": {"plan": "free"}, "device": "brick"}})

    assert labels(mapped) == {"campaign_id": "998", "plan": "free", "device_device": "brick"}


def test_properties_go_to_numbers_where_they_are_numbers_and_else_to_labels() -> None:
    mapped = track(properties={"revenue": 29.95, "price": "29.95", "quantity": 2, "gift": False, "coupon": ""})

    assert labels(mapped) == {"price": "29.95", "gift": "false", "coupon": ""}
    assert numbers(mapped) == {"revenue": "29.95", "quantity": "2"}


def test_nested_objects_are_flattened_and_keys_are_kept_as_they_are() -> None:
    mapped = track(
        properties={
            "a": {"b": {"c": 1, "D": "d"}},
            "key with space": "s",
            "Ünïcode Kéy": "v",
            "dotted.key": "x",
            "": "e",
        }
    )

    assert labels(mapped) == {"a_b_D": "d", "key with space": "s", "Ünïcode Kéy": "v", "dotted.key": "x", "": "e"}
    assert numbers(mapped) == {"a_b_c": "1"}


def test_null_and_empty_objects_and_empty_arrays_are_left_out() -> None:
    mapped = identify(traits={"gone": None, "object": {}, "array": [], "deep": {"gone": None, "object": {"x": []}}})

    assert (labels(mapped), numbers(mapped)) == ({}, {})


def test_an_array_is_one_label_its_json_text() -> None:
    mapped = identify(traits={"products": [{"sku": "G-32", "price": 19.0, "name": "Monopoly"}, None]})

    assert labels(mapped) == {"products": '[{"name":"Monopoly","price":19,"sku":"G-32"},null]'}


def test_labels_and_numbers_are_sorted_by_code_point_and_written_in_utf8() -> None:
    mapped = identify(traits={"b": "ü", "a": "1", "B": "2", "\U00010000": "3", "\uffff": "4", "é": "5"})

    body = BUILT_IN.encode(mapped, ACCEPTED_AT)

    assert '"labels":{"B":"2","a":"1","b":"ü","é":"5","\uffff":"4","\U00010000":"3"}'.encode() in body


def test_equal_events_give_equal_bytes_whatever_the_order_of_their_keys() -> None:
    pairs = [(f"key {number}", number) for number in range(50)]

    bodies = {BUILT_IN.encode(identify(traits=dict(order)), ACCEPTED_AT) for order in (pairs, pairs[::-1])}

    assert len(bodies) == 1


def test_numbers_are_json_numbers_without_exponent_where_the_rules_say_so() -> None:
    mapping = compile_mapping('numbers = "json"\n[[identify]]\nfrom = "traits"\nto = "numbers"\n', "test")

    body = mapping.encode(identify(traits={"big": 1e21, "small": 1e-7, "whole": 30, "zero": -0.0}), ACCEPTED_AT)

    assert body.endswith(b'"numbers":{"big":1000000000000000000000,"small":0.0000001,"whole":30,"zero":0}}')


def test_the_record_as_a_message_says_what_the_bytes_say() -> None:
    mapped = track(properties={"revenue": 25.5, "currency": "USD"}, context={"device": {"type": "ios"}})

    record = MessageToDict(BUILT_IN.record(mapped, ACCEPTED_AT))

    assert record == orjson.loads(BUILT_IN.encode(mapped, ACCEPTED_AT))


def test_a_number_that_json_has_not_is_left_out_rather_than_refused() -> None:
    mapped = track(properties={"fine": 1})
    mapped.track.properties.fields["odd"].number_value = math.nan
    mapped.track.context.location.latitude = math.inf
    mapped.track.context.traits.fields["none"].CopyFrom(Value())

    assert (labels(mapped), numbers(mapped)) == ({}, {"fine": "1"})


def test_an_event_without_a_message_still_maps() -> None:
    record = orjson.loads(BUILT_IN.encode(Event(), ACCEPTED_AT))

    assert (record["eventType"], record["actors"]) == ("identify", {})


def test_an_event_as_deep_as_protobuf_parses_maps() -> None:
    # given objects and arrays as deep as the parser goes
    deep = Event()
    struct_value, list_value = deep.identify.traits.fields["o"], deep.identify.traits.fields["a"]
    for _ in range(29):
        struct_value = struct_value.struct_value.fields["o"]
    for _ in range(45):
        list_value = list_value.list_value.values.add()
    struct_value.string_value = list_value.string_value = "bottom"
    parsed = Event.FromString(deep.SerializeToString())

    assert labels(parsed) == {"a": "[" * 45 + '"bottom"' + "]" * 45, "_".join("o" * 30): "bottom"}


def test_mapping_does_not_change_the_event() -> None:
    mapped = track(properties={"a": {"b": None}}, context={"extra": {"x": 1}})
    before = Event.FromString(mapped.SerializeToString())

    BUILT_IN.encode(mapped, ACCEPTED_AT)
    BUILT_IN.explain(mapped, ACCEPTED_AT)

    assert mapped == before


def test_many_threads_can_use_one_mapping() -> None:
    events = [track(properties={"number": number, "a": {"b": 1}, "a_b": 2}) for number in range(200)]
    alone = [BUILT_IN.encode(each, ACCEPTED_AT) for each in events]

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda each: BUILT_IN.encode(each, ACCEPTED_AT), events))

    assert together == alone


@pytest.mark.parametrize("segment", SAMPLES, ids=lambda segment: str(segment.get("event") or segment["messageId"]))
def test_real_events_map_to_valid_records(segment: dict[str, object]) -> None:
    # given a real event without the nulls that proto JSON does not read
    fields = {key: value for key, value in segment.items() if value is not None}
    mapped = event({str(segment["type"]): fields})

    record = orjson.loads(BUILT_IN.encode(mapped, ACCEPTED_AT))

    assert record["eventType"] == segment.get("event", "identify")
    assert record["actors"]["Customer"]
    assert all(type(text) is str for text in [*record["labels"].values(), *record["numbers"].values()])
