"""The field of the contract at fault, without what a caller has chosen in the path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.events.contract_field import contract_field
from service.events.message import message_of
from service.events.validation import violations
from tests.support.events import event


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("track.user_id", "track.user_id"),
        ("track", "track"),
        ("identify.traits.card.number", "identify.traits"),
        ("track.properties.products[3].price", "track.properties"),
        ("track.timestamp.nanos", "track.timestamp"),
        ("track.context.campaign.name", "track.context.campaign.name"),
        ("track.user_id…", "track"),
        ("type", "type"),
        ("options.wait_for_delivery", "options.wait_for_delivery"),
        ("filter.ids", "filter.ids"),
        ("", "unparsable"),
    ],
)
def test_a_path_ends_where_the_callers_own_keys_begin(path: str, field: str) -> None:
    assert contract_field(path) == field


@given(st.text(min_size=1))
def test_no_key_of_a_struct_is_left(key: str) -> None:
    # given an event with a bad number below a key of the caller's
    bad = event(1)
    bad.track.properties.fields[key].number_value = float("nan")
    message = message_of(bad)
    assert message is not None

    # when, then
    found = violations(message, bad.SerializeToString())
    assert {contract_field(violation.field) for violation in found} == {"track.properties"}
