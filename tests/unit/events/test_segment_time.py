"""Every form of time that Segment's libraries write, and those that are refused."""

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.events.segment_time import read_time

NANOSECONDS = 1_000_000_000

patient = settings(deadline=None)  # a busy machine may be slow


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("2026-02-23T22:28:55.111Z", "2026-02-23T22:28:55.111Z"),
        ("2026-02-23T22:28:55Z", "2026-02-23T22:28:55Z"),
        ("2026-02-23t22:28:55.111z", "2026-02-23T22:28:55.111Z"),
        ("2026-02-23 22:28:55.111Z", "2026-02-23T22:28:55.111Z"),
        ("2026-02-23T22:28:55.111222+00:00", "2026-02-23T22:28:55.111222Z"),
        ("2026-02-23T22:28:55.111222333Z", "2026-02-23T22:28:55.111222333Z"),
        ("2026-02-23T22:28:55.1112223Z", "2026-02-23T22:28:55.111222300Z"),
        ("2026-02-23T22:28:55.1112223339999Z", "2026-02-23T22:28:55.111222333Z"),
        ("2026-02-23T22:28:55.9999999999Z", "2026-02-23T22:28:55.999999999Z"),
        ("2015-12-12T19:11:01.152-05:00", "2015-12-13T00:11:01.152Z"),
        ("2015-12-12T19:11:01+0530", "2015-12-12T13:41:01Z"),
        ("2015-12-12T19:11:01-00:00", "2015-12-12T19:11:01Z"),
        ("2024-03-10T02:30:00", "2024-03-10T02:30:00Z"),
        ("2024-02-29", "2024-02-29T00:00:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T15:59:60.5-08:00", "2017-01-01T00:00:00.500Z"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
        (1_708_727_335, "2024-02-23T22:28:55Z"),
        (1_708_727_335_111, "2024-02-23T22:28:55.111Z"),
        (1_708_727_335.111, "2024-02-23T22:28:55.111Z"),
        (1_708_727_335_111.25, "2024-02-23T22:28:55.111250Z"),
        (100_000_000_000, "1973-03-03T09:46:40Z"),
        (99_999_999_999, "5138-11-16T09:46:39Z"),
        (-100_000_000_000, "1966-10-31T14:13:20Z"),
        (-0.5, "1969-12-31T23:59:59.500Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_a_time_is_read_as_the_instant_it_names(written: object, instant: str) -> None:
    assert read_time(written).ToJsonString() == instant


@pytest.mark.parametrize(
    "written",
    [
        "yesterday",
        "1708727335",
        "Fri Feb 23 2024 22:28:55 GMT+0100 (Central European Standard Time)",
        "Fri, 23 Feb 2024 22:28:55 GMT",
        "02/03/2024",
        "2024-02-30",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-02-23T24:00:00Z",
        "2024-02-23T22:60:00Z",
        "2024-02-23T22:28:61Z",
        "2024-02-23T22:28:55+24:00",
        "2024-02-23T22:28:55+01:60",
        "2024-02-23T22:28:55.Z",
        "2024-02-23T22:28:55Z ",
        "2024-02-23T22:28:55Z\n",
        "٢٠٢٤-02-23T22:28:55Z",
        "0000-01-01T00:00:00Z",
        "\ud800",
        True,
        [],
        {},
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_no_time_is_refused_with_the_forms_that_are_right(written: object) -> None:
    with pytest.raises(ValueError, match="RFC 3339"):
        read_time(written)


@pytest.mark.parametrize(
    "written",
    ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:60Z", 253_402_300_800_000, -(10**400)],
)
def test_an_instant_outside_of_the_years_of_a_timestamp_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="0001 to 9999"):
        read_time(written)


def test_a_long_text_is_cut_in_the_error_that_repeats_it() -> None:
    with pytest.raises(ValueError, match="cannot read") as caught:
        read_time("x" * 10_000)

    assert len(str(caught.value)) < 200


@given(
    st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9999, 12, 30)),  # noqa: DTZ001 - zoned below
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
@patient
def test_any_isoformat_is_the_instant_that_datetime_says(naive: dt.datetime, offset: int) -> None:
    moment = naive.replace(tzinfo=dt.timezone(dt.timedelta(minutes=offset)))
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)  # noqa: UP017 - beside dt.timezone above

    read = read_time(moment.isoformat())

    assert (read.seconds * NANOSECONDS + read.nanos) // 1_000 == (moment - epoch) // dt.timedelta(microseconds=1)


@given(st.integers(-62_135_596_800 * NANOSECONDS, 253_402_300_799 * NANOSECONDS + NANOSECONDS - 1))
@patient
def test_what_a_timestamp_writes_is_read_back_the_same(nanoseconds: int) -> None:
    seconds, nanos = divmod(nanoseconds, NANOSECONDS)
    timestamp = read_time("1970-01-01")
    timestamp.seconds, timestamp.nanos = seconds, nanos

    assert read_time(timestamp.ToJsonString()) == timestamp


@given(st.text() | st.integers() | st.floats() | st.booleans())
@patient
def test_nothing_but_a_value_error_is_ever_raised(value: object) -> None:
    try:
        read_time(value)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - most values are refused, and either way is right
