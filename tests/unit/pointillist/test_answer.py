from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pointillist.answer import LONGEST_WAIT, retry_after_seconds

NOON = "Sun, 06 Nov 1994 12:00:00 GMT"


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("9" * 400, LONGEST_WAIT)])
def test_a_number_is_seconds(value: str, seconds: float) -> None:
    assert retry_after_seconds(value, None) == seconds


@pytest.mark.parametrize(
    "value", ["Sun, 06 Nov 1994 12:01:30 GMT", "Sunday, 06-Nov-94 12:01:30 GMT", "Sun Nov  6 12:01:30 1994"]
)
def test_a_date_in_each_of_the_three_forms_is_relative_to_the_answers_own(value: str) -> None:
    assert retry_after_seconds(value, NOON) == 90.0


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_a_date_is_relative_to_the_local_clock_where_the_answer_has_none(date: str | None) -> None:
    # given a date an hour from now
    value = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    # when it is read
    seconds = retry_after_seconds(value, date)
    # then it is an hour away, less the fraction that the form has no room for and the time this test takes
    assert seconds is not None
    assert 3_500 < seconds <= 3_600


def test_a_date_in_the_past_is_now() -> None:
    assert retry_after_seconds("Sun, 06 Nov 1994 11:00:00 GMT", NOON) == 0.0


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "1e3", "inf", "nan", "٣", "Sun, 99 Nov 1994"])
def test_nonsense_says_nothing(value: str | None) -> None:
    assert retry_after_seconds(value, None) is None


@given(value=st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ [\d:]+ ?[A-Z+\-0-9]*"), date=st.text())
def test_no_value_does_more_than_say_nothing(value: str, date: str) -> None:
    seconds = retry_after_seconds(value, date)
    assert seconds is None or 0.0 <= seconds <= LONGEST_WAIT
