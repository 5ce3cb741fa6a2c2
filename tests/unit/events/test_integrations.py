"""The truth table of the integrations object, row by row."""

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from service.events.integrations import is_sent

SENT: list[dict[str, object]] = [
    {},
    {"All": True},
    {"all": True},
    {"All": "false"},
    {"All": 0},
    {"All": None},
    {"All": {}},
    {"All": []},
    {"all": "false"},
    {"All": False, "Pointillist": True},
    {"All": False, "Pointillist": {}},
    {"All": False, "Pointillist": None},
    {"All": False, "Pointillist": {"option": 1}},
    {"All": False, "Pointillist": "false"},
    {"pointillist": False},
    {"POINTILLIST": False},
    {"Pointillist ": False},
    {"Pointillist": "false"},
    {"Pointillist": 0},
    {"Pointillist": ""},
    {"Mixpanel": False},
    {"All ": False},
    {"Allowed": False},
    {"Warehouses": {"all": False}},
]
NOT_SENT: list[dict[str, object]] = [
    {"All": False},
    {"all": False},
    {"ALL": False},
    {"aLl": False},
    {"All": False, "pointillist": True},
    {"All": False, "Mixpanel": True},
    {"Pointillist": False},
    {"All": True, "Pointillist": False},
]


@pytest.mark.parametrize("integrations", SENT, ids=str)
def test_an_event_is_sent_unless_false_itself_says_no(integrations: dict[str, object]) -> None:
    assert is_sent(ParseDict(integrations, Struct()))


@pytest.mark.parametrize("integrations", NOT_SENT, ids=str)
def test_an_event_is_not_sent_where_false_itself_says_no(integrations: dict[str, object]) -> None:
    assert not is_sent(ParseDict(integrations, Struct()))


@pytest.mark.parametrize(
    ("integrations", "sent"),
    [({"all": False, "All": True}, True), ({"all": True, "All": False}, False), ({"all": False, "ALL": True}, True)],
    ids=str,
)
def test_among_several_spellings_all_itself_counts_and_else_the_first(
    integrations: dict[str, object], sent: bool
) -> None:
    assert is_sent(ParseDict(integrations, Struct())) is sent


def test_a_value_of_no_kind_is_no_boolean() -> None:
    # given a Struct that only another program's bug could have made
    integrations = Struct()
    integrations.fields["All"].SetInParent()

    assert is_sent(integrations)


def test_asking_does_not_change_the_object() -> None:
    integrations = ParseDict({"Mixpanel": True}, Struct())

    is_sent(integrations)

    assert integrations == ParseDict({"Mixpanel": True}, Struct())
