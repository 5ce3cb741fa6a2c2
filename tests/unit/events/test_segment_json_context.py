"""The context: what goes to a field, what to an extra, and what is absent."""

from typing import Any

import pytest
from google.protobuf import json_format

from service.events.segment_json import Imported, import_line, import_message


def import_context(context: dict[str, Any]) -> dict[str, Any]:
    """Imports a track with this context; gives the Context as the contract's JSON."""
    result = import_message({"type": "track", "userId": "u", "event": "E", "context": context})
    assert isinstance(result, Imported), result
    assert result.ignored == ()
    as_json: dict[str, Any] = json_format.MessageToDict(result.event.track.context)
    return as_json


def test_every_documented_field_has_its_place() -> None:
    documented = {
        "active": True,
        "app": {"name": "n", "version": "1", "build": "2", "namespace": "ns"},
        "campaign": {"name": "n", "source": "s", "medium": "m", "term": "t", "content": "c"},
        "device": {
            "id": "i",
            "advertisingId": "a",
            "adTrackingEnabled": False,
            "manufacturer": "m",
            "model": "mo",
            "name": "n",
            "type": "t",
            "version": "v",
            "token": "to",
        },
        "ip": "192.0.2.1",
        "library": {"name": "n", "version": "v"},
        "locale": "nl-NL",
        "location": {"city": "c", "country": "co", "latitude": 1.5, "longitude": -2.5, "region": "r", "speed": 0.0},
        "network": {"bluetooth": False, "carrier": "c", "cellular": True, "wifi": False},
        "os": {"name": "n", "version": "v"},
        "page": {"path": "p", "referrer": "", "search": "", "title": "t", "url": "u"},
        "referrer": {"id": "i", "type": "t", "name": "n", "url": "u", "link": "l"},
        "screen": {"width": 320.0, "height": 568.0, "density": 2.0},
        "timezone": "Europe/Amsterdam",
        "groupId": "g",
        "userAgent": "ua",
        "channel": "web",
        "traits": {"plan": None},
    }

    assert import_context(documented) == documented


def test_what_a_campaign_device_or_location_has_beyond_its_fields_goes_to_its_own_extra() -> None:
    assert import_context(
        {"campaign": {"name": "n", "id": "998"}, "device": {"x": {"y": None}}, "location": {"continent": "EU"}}
    ) == {
        "campaign": {"name": "n", "extra": {"id": "998"}},
        "device": {"extra": {"x": {"y": None}}},
        "location": {"extra": {"continent": "EU"}},
    }


@pytest.mark.parametrize("part", ["app", "os", "page", "network", "referrer", "screen", "library"])
def test_what_another_part_has_beyond_its_fields_goes_to_the_extra_of_the_context(part: str) -> None:
    assert import_context({part: {"arch": "arm64"}}) == {part: {}, "extra": {part: {"arch": "arm64"}}}


def test_unknown_keys_go_to_the_extra_of_the_context() -> None:
    unknown = {"personas": {"computation_key": "k"}, "externalIds": [{"id": "1"}], "instanceId": "i", "sessionId": 5}

    assert import_context(unknown) == {"extra": unknown}


def test_nulls_are_absent_whether_or_not_the_key_is_known() -> None:
    assert import_context(
        {
            "ip": None,
            "device": {"id": None, "x": None},
            "os": {"name": None, "x": None},
            "app": None,
            "x": None,
            "traits": None,
        }
    ) == {"device": {}, "os": {}}


@pytest.mark.parametrize(
    ("given", "fitted"),
    [
        ({"app": {"build": 42}}, {"app": {"build": "42"}}),
        ({"app": {"build": 42.0}}, {"app": {"build": "42"}}),
        ({"device": {"version": 12.5}}, {"device": {"version": "12.5"}}),
        ({"device": {"version": 1e-7}}, {"device": {"version": "0.0000001"}}),
        ({"ip": False, "locale": True}, {"ip": "false", "locale": "true"}),
        ({"location": {"latitude": "37.7", "speed": "-1e2"}}, {"location": {"latitude": 37.7, "speed": -100.0}}),
        ({"screen": {"width": "320"}}, {"screen": {"width": 320.0}}),
        ({"active": "true", "network": {"wifi": "false"}}, {"active": True, "network": {"wifi": False}}),
    ],
)
def test_a_scalar_of_another_kind_is_made_to_fit(given: dict[str, Any], fitted: dict[str, Any]) -> None:
    assert import_context(given) == fitted


@pytest.mark.parametrize("digits", ["123456789012345678901234567890", "-9223372036854775809", "18446744073709551616"])
def test_a_long_number_keeps_every_digit_where_a_string_belongs(digits: str) -> None:
    [result] = import_line(b'{"userId":"u","event":"E","context":{"device":{"id": %b}}}' % digits.encode())

    assert isinstance(result, Imported)
    assert result.event.track.context.device.id == digits


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"ip": ["192.0.2.1"]}, {"extra": {"ip": ["192.0.2.1"]}}),
        ({"active": "yes"}, {"extra": {"active": "yes"}}),
        ({"device": "phone"}, {"extra": {"device": "phone"}}),
        ({"device": {"adTrackingEnabled": 7}}, {"device": {"extra": {"adTrackingEnabled": 7}}}),
        ({"device": {"id": {"a": 1}}}, {"device": {"extra": {"id": {"a": 1}}}}),
        ({"location": {"latitude": "abc"}}, {"location": {"extra": {"latitude": "abc"}}}),
        ({"location": {"latitude": "1e999"}}, {"location": {"extra": {"latitude": "1e999"}}}),
        ({"location": {"latitude": "nan", "speed": True}}, {"location": {"extra": {"latitude": "nan", "speed": True}}}),
        ({"os": {"name": ["a"]}}, {"os": {}, "extra": {"os": {"name": ["a"]}}}),
        ({"os": "iOS"}, {"extra": {"os": "iOS"}}),
        ({"traits": ["a"]}, {"extra": {"traits": ["a"]}}),
        ({"extra": "x"}, {"extra": {"extra": "x"}}),
    ],
)
def test_a_value_that_cannot_be_made_to_fit_is_kept_in_the_nearest_extra(
    given: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert import_context(given) == kept


def test_an_extra_of_the_contracts_own_json_is_taken_as_it_is() -> None:
    contract = {
        "device": {"id": "i", "extra": {"x": None, "id2": 1}},
        "os": {"name": "n"},
        "extra": {"ip": {"v4": "192.0.2.1"}, "os": {"arch": "arm64"}, "personas": {"a": None}},
    }

    assert import_context(contract) == contract


def test_a_key_beside_an_extra_holds_against_the_same_key_in_it() -> None:
    assert import_context(
        {
            "ip": "own",
            "x": 1,
            "device": {"id": "own", "y": 2, "extra": {"id": "other", "y": 3, "z": 4}},
            "os": {"name": "own", "arch": "own"},
            "app": {"beta": True},
            "extra": {"ip": "other", "x": 2, "os": {"name": "other", "arch": "other", "bits": 64}, "app": True},
        }
    ) == {
        "ip": "own",
        "device": {"id": "own", "extra": {"y": 2, "z": 4}},
        "os": {"name": "own"},
        "app": {},
        "extra": {"x": 1, "os": {"arch": "own", "bits": 64}, "app": {"beta": True}},
    }
