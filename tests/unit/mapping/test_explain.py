"""The explanation of a record."""

from google.protobuf.json_format import ParseDict

from pointillist_destination.v1.event_pb2 import Event
from service.mapping.explain import Origin
from service.mapping.mapping_file import compile_mapping, load_mapping

BUILT_IN = load_mapping(None)


def track(**fields: object) -> Event:
    return ParseDict({"track": {"userId": "u-1", "event": "Order Completed", **fields}}, Event())


def test_each_label_and_number_has_its_path_in_segments_names_and_its_row() -> None:
    event = track(
        properties={"revenue": 25.5, "address": {"city": "Zurich"}},
        context={"device": {"advertisingId": "7A", "extra": {"cores": 6}}, "traits": {"plan": "p"}},
    )

    explanation = BUILT_IN.explain(event, 0)

    assert explanation.labels == {
        "address_city": Origin("properties.address.city", "track row 5 (properties)"),
        "device_advertisingId": Origin("context.device.advertisingId", "track row 4 (context.device)"),
        "device_cores": Origin("context.device.cores", "track row 4 (context.device)"),
        "plan": Origin("context.traits.plan", "track row 3 (context.traits)"),
    }
    assert explanation.numbers == {"revenue": Origin("properties.revenue", "track row 5 (properties)")}


def test_a_clash_is_explained_under_the_final_names() -> None:
    event = track(properties={"plan": "new"}, context={"traits": {"plan": "old"}})

    explanation = BUILT_IN.explain(event, 0)

    assert {name: origin.path for name, origin in explanation.labels.items()} == {
        "plan": "properties.plan",
        "traits_plan": "context.traits.plan",
    }


def test_identifiers_are_explained_by_class_and_name() -> None:
    mapping = compile_mapping('[[track]]\nfrom = "properties.order_id"\nto = "actors.Order.orderId"\n', "test")

    assert mapping.explain(track(properties={"order_id": "o-1"}), 0).actors == {
        "Customer.userId": Origin("userId", "built in"),
        "Order.orderId": Origin("properties.order_id", "track row 1 (properties.order_id)"),
    }


def test_what_reaches_no_part_of_the_record_is_listed_as_unused() -> None:
    event = track(
        messageId="m-1",
        timestamp="2026-01-01T00:00:00Z",
        sentAt="2026-01-01T00:00:00Z",
        integrations={"All": True},
        properties={"used": 1, "gone": None, "empty": []},
        context={
            "ip": "8.8.8.8",
            "os": {"name": "iOS"},
            "extra": {"externalIds": [{"id": "1"}], "os": {"arch": "arm"}},
        },
    )

    assert BUILT_IN.explain(event, 0).unused == (
        "context.externalIds",
        "context.ip",
        "context.os.arch",
        "context.os.name",
        "integrations.All",
        "messageId",
        "sentAt",
    )


def test_the_times_that_make_the_event_time_are_used() -> None:
    day = "2026-01-01T00:00:00Z"

    assert BUILT_IN.explain(track(originalTimestamp=day, sentAt=day, receivedAt=day), 0).unused == ()
    assert BUILT_IN.explain(track(originalTimestamp=day, sentAt=day), 0).unused == ("sentAt",)


def test_what_is_dropped_is_unused() -> None:
    mapping = compile_mapping('[[identify]]\nfrom = "traits"\nto = "labels"\ndrop = ["email"]\n', "test")
    event = ParseDict({"identify": {"traits": {"email": "e", "plan": "p"}}}, Event())

    assert mapping.explain(event, 0).unused == ("traits.email",)
