"""What the rows of a mapping file do."""

import orjson
import pytest
from google.protobuf.json_format import ParseDict

from pointillist_destination.v1.event_pb2 import Event
from service.mapping.mapping_file import compile_mapping

EVENT: dict[str, object] = {
    "track": {
        "userId": "u-1",
        "messageId": "m-1",
        "event": "Order Completed",
        "timestamp": "2026-02-23T22:28:55.111999Z",
        "integrations": {"All": True},
        "properties": {
            "order_id": "o-1",
            "total": 27.5,
            "gift": True,
            "empty": "",
            "gone": None,
            "items": ["a"],
            "dotted.key": "literal",
            "dotted": {"other": "nested"},
            "address": {"city": "Zurich", "street": {"name": "Weg", "number": 5}},
        },
        "context": {
            "ip": "8.8.8.8",
            "active": False,
            "groupId": "g-1",
            "os": {"name": "iOS"},
            "screen": {"width": 320, "height": 0},
            "device": {"advertisingId": "7A", "type": "ios", "extra": {"cores": 6}},
            "campaign": {"name": "Spring", "term": "t", "content": "c", "extra": {"id": "998"}},
            "traits": {"email": "e@example.com", "address": {"city": "Bern", "zip": "3000"}},
            "extra": {
                "os": {"arch": "arm64"},
                "personas": {"computation_key": "k"},
                "userAgentData": {"mobile": False, "brands": [{"brand": "Chromium"}]},
                "consent": {"categoryPreferences": {"Advertising": True}},
                "library": "not an object",
            },
        },
    }
}


def record(row: str) -> dict[str, dict[str, object]]:
    """The record of the event by a mapping of one row."""
    mapping = compile_mapping(f"[[track]]\n{row}", "test")
    parsed: dict[str, dict[str, object]] = orjson.loads(mapping.encode(ParseDict(EVENT, Event()), 0))
    return parsed


def labels(path: str, options: str = "", to: str = "labels") -> dict[str, object]:
    return record(f"from = '{path}'\nto = '{to}'\n{options}")["labels"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("userId", {"userId": "u-1"}),
        ("anonymousId", {}),
        ("messageId", {"messageId": "m-1"}),
        ("event", {"event": "Order Completed"}),
        ("timestamp", {"timestamp": "2026-02-23T22:28:55.111Z"}),
        ("sentAt", {}),
        ("integrations", {"All": "true"}),
        ("integrations.All", {"All": "true"}),
        ("properties.total", {"total": "27.5"}),
        ("properties.items", {"items": '["a"]'}),
        ("properties.gone", {}),
        ("properties.absent", {}),
        ("properties.order_id.deeper", {}),
        ("properties.address.street", {"name": "Weg", "number": "5"}),
        ("properties.address.street.name", {"name": "Weg"}),
        ("properties.dotted.key", {"dotted.key": "literal"}),
        ("properties.dotted.other", {"other": "nested"}),
        ("context.ip", {"ip": "8.8.8.8"}),
        ("context.ip.deeper", {}),
        ("context.locale", {}),
        ("context.active", {"active": "false"}),
        ("context.groupId", {"groupId": "g-1"}),
        ("context.os", {"name": "iOS", "arch": "arm64"}),
        ("context.os.arch", {"arch": "arm64"}),
        ("context.screen", {"width": "320", "height": "0"}),
        ("context.screen.width", {"width": "320"}),
        ("context.device", {"advertisingId": "7A", "type": "ios", "cores": "6"}),
        ("context.device.advertisingId", {"advertisingId": "7A"}),
        ("context.device.advertising_id", {}),
        ("context.device.cores", {"cores": "6"}),
        ("context.campaign.id", {"id": "998"}),
        ("context.traits.address.city", {"city": "Bern"}),
        ("context.personas.computation_key", {"computation_key": "k"}),
        ("context.userAgentData", {"mobile": "false", "brands": '[{"brand":"Chromium"}]'}),
        ("context.consent", {"categoryPreferences_Advertising": "true"}),
        ("context.library", {"library": "not an object"}),
        ("context.page.url", {}),
    ],
)
def test_from_takes_segments_own_paths_wherever_the_contract_keeps_the_value(
    path: str, expected: dict[str, str]
) -> None:
    assert labels(path) == expected


def test_from_can_name_the_whole_context() -> None:
    whole = labels("context", 'drop = ["campaign", "traits", "userAgentData"]')

    assert whole == {
        "ip": "8.8.8.8",
        "active": "false",
        "groupId": "g-1",
        "os_name": "iOS",
        "os_arch": "arm64",
        "screen_width": "320",
        "screen_height": "0",
        "device_advertisingId": "7A",
        "device_type": "ios",
        "device_cores": "6",
        "personas_computation_key": "k",
        "consent_categoryPreferences_Advertising": "true",
        "library": "not an object",
    }


def test_the_whole_context_reads_the_same_with_and_without_options() -> None:
    assert labels("context") == labels("context", 'drop = ["no such key"]')


@pytest.mark.parametrize("to", ["numbers", "labels_and_numbers"])
def test_numbers_go_to_numbers_and_what_is_no_number_to_labels(to: str) -> None:
    mapped = record(f"from = 'properties'\nto = '{to}'\nkeep = ['total', 'gift']")

    assert (mapped["labels"], mapped["numbers"]) == ({"gift": "true"}, {"total": "27.5"})


@pytest.mark.parametrize(("path", "key"), [("properties.total", "total"), ("context.screen.width", "width")])
def test_one_value_that_is_a_number_can_go_to_numbers(path: str, key: str) -> None:
    assert list(record(f"from = '{path}'\nto = 'numbers'")["numbers"]) == [key]


def test_the_key_of_one_value_is_the_paths_last_name_after_the_prefix() -> None:
    assert labels("properties.address.city", 'prefix = "to_"') == {"to_city": "Zurich"}
    assert labels("context.ip", 'prefix = "to_"') == {"to_ip": "8.8.8.8"}


def test_one_value_is_renamed_by_the_paths_last_name() -> None:
    assert labels("context.ip", 'prefix = "x_"\nrename = {ip = "address"}') == {"address": "8.8.8.8"}


def test_a_prefix_begins_every_key() -> None:
    assert labels("context.traits", 'prefix = "user_"') == {
        "user_email": "e@example.com",
        "user_address_city": "Bern",
        "user_address_zip": "3000",
    }


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ('keep = ["email"]', {"email"}),
        ('keep = ["address"]', {"address_city", "address_zip"}),
        ('keep = ["address.city", "email"]', {"address_city", "email"}),
        ('keep = ["addr"]', set()),
        ("keep = []", {"email", "address_city", "address_zip"}),
        ('drop = ["email"]', {"address_city", "address_zip"}),
        ('drop = ["address"]', {"email"}),
        ('drop = ["address.zip"]', {"email", "address_city"}),
        ('keep = ["address"]\ndrop = ["address.zip"]', {"address_city"}),
    ],
)
def test_keep_and_drop_take_dotted_paths_and_mean_their_children_too(options: str, keys: set[str]) -> None:
    assert set(labels("context.traits", options)) == keys


@pytest.mark.parametrize("option", ["keep", "drop"])
def test_a_key_with_dots_in_it_is_named_by_itself(option: str) -> None:
    taken = labels("properties", f'{option} = ["dotted.key"]')

    assert ("dotted.key" in taken) is (option == "keep")


def test_drop_keeps_a_value_out_wherever_the_contract_keeps_it() -> None:
    assert set(labels("context.campaign", 'drop = ["id", "term"]')) == {"name", "content"}
    assert labels("context.os", 'drop = ["arch"]') == {"name": "iOS"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('rename = {email = "mail"}', {"mail": "e@example.com", "p_address_city": "Bern", "p_address_zip": "3000"}),
        ('rename = {address = "addr"}', {"p_email": "e@example.com", "addr_city": "Bern", "addr_zip": "3000"}),
        ('rename = {"address.city" = "c"}', {"p_email": "e@example.com", "c": "Bern", "p_address_zip": "3000"}),
        ('rename = {address.city = "c"}', {"p_email": "e@example.com", "c": "Bern", "p_address_zip": "3000"}),
        (
            'rename = {"address" = "a", "address.city" = "c"}',
            {"p_email": "e@example.com", "c": "Bern", "a_zip": "3000"},
        ),
    ],
)
def test_rename_gives_the_final_name_without_the_prefix(options: str, expected: dict[str, str]) -> None:
    assert labels("context.traits", f'prefix = "p_"\n{options}') == expected


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("properties.order_id", "o-1"),
        ("properties.total", "27.5"),
        ("properties.gift", "true"),
        ("context.groupId", "g-1"),
        ("context.screen.width", "320"),
        ("context.active", "false"),
        ("timestamp", "2026-02-23T22:28:55.111Z"),
    ],
)
def test_one_value_can_identify_a_secondary_actor(path: str, text: str) -> None:
    assert record(f"from = '{path}'\nto = 'actors.Order.orderId'")["actors"] == {
        "Customer": {"userId": "u-1"},
        "Order": {"orderId": text},
    }


@pytest.mark.parametrize(
    "path",
    [
        "properties.gone",
        "properties.empty",
        "properties.absent",
        "properties.items",
        "properties.address",
        "anonymousId",
        "context.locale",
    ],
)
def test_what_is_null_empty_absent_an_object_or_an_array_identifies_nobody(path: str) -> None:
    assert record(f"from = '{path}'\nto = 'actors.Order.orderId'")["actors"] == {"Customer": {"userId": "u-1"}}


def test_a_row_can_identify_the_first_actor_further() -> None:
    assert record("from = 'context.traits.email'\nto = 'actors.Customer.email'")["actors"] == {
        "Customer": {"userId": "u-1", "email": "e@example.com"}
    }


def test_the_settings_of_a_file_name_the_source_and_the_actors_class() -> None:
    mapping = compile_mapping('event_source = "Shop"\nactor_class = "Account"', "test")

    mapped = orjson.loads(mapping.encode(ParseDict(EVENT, Event()), 0))

    assert (mapped["eventSource"], mapped["actors"]) == ("Shop", {"Account": {"userId": "u-1"}})
