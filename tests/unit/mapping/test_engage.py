"""Audiences and computed traits of Segment's Engage."""

import orjson
import pytest
from google.protobuf.json_format import ParseDict

from pointillist_destination.v1.event_pb2 import Event
from service.events.integrations import is_sent
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import compile_mapping, load_mapping

ACCEPTED_AT = 1_771_885_735_111  # 2026-02-23T22:28:55.111Z
BUILT_IN = load_mapping(None)

ENGAGE: dict[str, object] = {
    "messageId": "personas_2Cn7F2TrIzn0aXnL6kG1XnXrGq6",
    "originalTimestamp": "2026-02-23T22:28:55.111222333Z",
    "integrations": {"All": False, "Pointillist": True, "Warehouses": {"all": False}},
    "context": {
        "extra": {
            "personas": {
                "computation_class": "audience",
                "computation_id": "aud_1",
                "computation_key": "order_completed_last_30days",
                "namespace": "spa_1",
                "space_id": "spa_1",
            }
        }
    },
}


def identify(**fields: object) -> Event:
    return ParseDict({"identify": {**ENGAGE, "userId": "u-1", **fields}}, Event())


def record(event: Event, mapping: Mapping = BUILT_IN) -> dict[str, object]:
    parsed: dict[str, object] = orjson.loads(mapping.encode(event, ACCEPTED_AT))
    return parsed


@pytest.mark.parametrize(("inside", "label"), [(True, "true"), (False, "false")])
def test_an_audience_reaches_us_as_an_identify_with_one_trait_true_on_entering_and_false_on_leaving(
    inside: bool, label: str
) -> None:
    assert record(identify(traits={"order_completed_last_30days": inside})) == {
        "eventSource": "Segment",
        "eventType": "identify",
        "eventTime": "2026-02-23T22:28:55.111Z",
        "actors": {"Customer": {"userId": "u-1"}},
        "labels": {"order_completed_last_30days": label},
        "numbers": {},
    }


@pytest.mark.parametrize(
    ("trait", "labels", "numbers"),
    [
        (149.5, {}, {"lifetime_value": "149.5"}),
        ("gold", {"lifetime_value": "gold"}, {}),
        ("2026-02-23T22:28:55.111Z", {"lifetime_value": "2026-02-23T22:28:55.111Z"}, {}),
        (True, {"lifetime_value": "true"}, {}),
        (["a", "b", 3], {"lifetime_value": '["a","b",3]'}, {}),
        ({"brand": "Acme", "orders": 2}, {"lifetime_value_brand": "Acme"}, {"lifetime_value_orders": "2"}),
        (None, {}, {}),
    ],
    ids=["number", "string", "date", "boolean", "array", "object", "null when it is gone"],
)
def test_a_computed_trait_reaches_us_as_an_identify_with_that_trait(
    trait: object, labels: dict[str, str], numbers: dict[str, str]
) -> None:
    mapped = record(identify(traits={"lifetime_value": trait}))

    assert (mapped["labels"], mapped["numbers"]) == (labels, numbers)


@pytest.mark.parametrize(("name", "inside"), [("Audience Entered", True), ("Audience Exited", False)])
def test_audiences_can_also_come_as_track_events_with_the_audience_key(name: str, inside: bool) -> None:
    properties = {"audience_key": "order_completed_last_30days", "order_completed_last_30days": inside}

    mapped = record(ParseDict({"track": {**ENGAGE, "userId": "u-1", "event": name, "properties": properties}}, Event()))

    assert mapped["eventType"] == name
    assert mapped["labels"] == {
        "audience_key": "order_completed_last_30days",
        "order_completed_last_30days": "true" if inside else "false",
    }


def test_an_audience_of_users_who_are_not_known_yet_has_the_anonymous_id_alone() -> None:
    mapped = record(ParseDict({"identify": {**ENGAGE, "anonymousId": "a-1", "traits": {"visitors": True}}}, Event()))

    assert mapped["actors"] == {"Customer": {"anonymousId": "a-1"}}


def test_context_personas_says_which_computation_it_was_to_a_row_that_asks() -> None:
    mapping = compile_mapping(
        """
        [[identify]]
        from = "context.personas.computation_key"
        to = "labels"
        """,
        "test",
    )

    mapped = record(identify(traits={"order_completed_last_30days": True}), mapping)

    assert mapped["labels"] == {"computation_key": "order_completed_last_30days"}


def test_what_engage_sends_to_us_alone_is_sent() -> None:
    assert is_sent(identify().identify.integrations)
