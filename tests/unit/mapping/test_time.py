"""When an event happened, and how a mapping writes it."""

from datetime import UTC, datetime

import orjson
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from pointillist_destination.v1.event_pb2 import Event, Identify
from service.mapping.event_time import iso8601
from service.mapping.mapping_file import compile_mapping, load_mapping

ACCEPTED_AT = 1_771_885_735_111  # 2026-02-23T22:28:55.111Z
BUILT_IN = load_mapping(None)


def event_time(**times: str) -> str:
    event = ParseDict({"track": {"userId": "u", "event": "E", **times}}, Event())
    text: str = orjson.loads(BUILT_IN.encode(event, ACCEPTED_AT))["eventTime"]
    return text


def written(time_format: str, timestamp: Timestamp) -> str:
    mapping = compile_mapping(f"time_format = '{time_format}'", "test")
    return mapping.record(Event(identify=Identify(timestamp=timestamp)), ACCEPTED_AT).event_time


def test_the_timestamp_wins_over_every_other_time() -> None:
    assert (
        event_time(
            timestamp="2026-01-01T00:00:00Z",
            originalTimestamp="2026-01-02T00:00:00Z",
            sentAt="2026-01-03T00:00:00Z",
            receivedAt="2026-01-04T00:00:00Z",
        )
        == "2026-01-01T00:00:00.000Z"
    )


def test_without_a_timestamp_the_senders_clock_is_corrected() -> None:
    # given a sender whose clock is an hour behind: it sent the event 2.5 s after it happened
    times = {
        "originalTimestamp": "2026-01-01T11:00:00.000Z",
        "sentAt": "2026-01-01T11:00:02.500Z",
        "receivedAt": "2026-01-01T12:00:02.600Z",
    }

    assert event_time(**times) == "2026-01-01T12:00:00.100Z"


@pytest.mark.parametrize("missing", ["sentAt", "receivedAt"])
def test_without_all_three_times_the_original_one_stands(missing: str) -> None:
    times = {
        "originalTimestamp": "2026-01-01T11:00:00Z",
        "sentAt": "2026-01-01T11:00:02Z",
        "receivedAt": "2026-01-01T12:00:02Z",
    }
    del times[missing]

    assert event_time(**times) == "2026-01-01T11:00:00.000Z"


def test_a_corrected_time_out_of_range_gives_way_to_the_original_one() -> None:
    times = {
        "originalTimestamp": "9999-12-31T00:00:00Z",
        "sentAt": "2026-01-01T00:00:00Z",
        "receivedAt": "2026-01-02T00:00:00Z",
    }

    assert event_time(**times) == "9999-12-31T00:00:00.000Z"


@pytest.mark.parametrize("times", [{}, {"sentAt": "2026-01-01T00:00:00Z", "receivedAt": "2026-01-01T00:00:00Z"}])
def test_without_a_time_of_its_own_an_event_happened_when_it_was_accepted(times: dict[str, str]) -> None:
    assert event_time(**times) == "2026-02-23T22:28:55.111Z"


def test_offsets_are_written_in_utc() -> None:
    assert event_time(timestamp="2015-12-12T19:11:01.152-05:00") == "2015-12-13T00:11:01.152Z"


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (Timestamp(seconds=0, nanos=999_999_999), "1970-01-01T00:00:00.999Z"),
        (Timestamp(seconds=-1, nanos=999_999), "1969-12-31T23:59:59.000Z"),
        (Timestamp(seconds=-62_135_596_800), "0001-01-01T00:00:00.000Z"),
        (Timestamp(seconds=253_402_300_799, nanos=999_999_999), "9999-12-31T23:59:59.999Z"),
        (Timestamp(seconds=-(2**60)), "0001-01-01T00:00:00.000Z"),
        (Timestamp(seconds=2**60), "9999-12-31T23:59:59.999Z"),
        (Timestamp(nanos=-1), "1969-12-31T23:59:59.999Z"),
    ],
    ids=str,
)
def test_milliseconds_are_cut_and_years_have_four_digits(timestamp: Timestamp, text: str) -> None:
    assert written("iso8601", timestamp) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_iso8601_reads_back_as_the_same_millisecond(moment: datetime) -> None:
    nanoseconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 10**9

    text = iso8601(nanoseconds)

    assert len(text) == 24
    assert abs((datetime.fromisoformat(text) - moment).total_seconds()) < 1


@pytest.mark.parametrize(
    ("time_format", "text"),
    [
        ("%Y-%m-%d %H:%M:%S%z", "2026-02-23 22:28:55+0000"),
        ("%Y-%m-%dT%H:%M:%S.%fZ", "2026-02-23T22:28:55.111222Z"),
        ("%-m/%-d/%y", "2/23/26"),
    ],
)
def test_a_pattern_writes_the_time_in_utc(time_format: str, text: str) -> None:
    assert written(time_format, Timestamp(seconds=1_771_885_735, nanos=111_222_333)) == text


@pytest.mark.parametrize("seconds", [-(2**62), -62_135_596_800, 253_402_300_799, 2**62])
def test_a_pattern_can_write_every_year(seconds: int) -> None:
    assert written("%H:%M", Timestamp(seconds=seconds)) in ("00:00", "23:59")


def test_a_moment_of_acceptance_out_of_range_is_moved_to_the_nearest_year() -> None:
    assert BUILT_IN.record(Event(), 10**18).event_time == "9999-12-31T23:59:59.999Z"
