"""When an event happened, and how that is written.

A moment is an int: nanoseconds since 1970-01-01T00:00:00Z, from the year 1 to the year 9999.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from pointillist_destination.v1 import event_pb2

SECOND = 1_000_000_000  # nanoseconds
MILLISECOND = 1_000_000  # nanoseconds
MICROSECOND = 1_000  # nanoseconds
FIRST_MOMENT = -62_135_596_800 * SECOND  # 0001-01-01T00:00:00Z
LAST_MOMENT = 253_402_300_800 * SECOND - 1  # 9999-12-31T23:59:59.999999999Z
ISO8601 = "iso8601"
SECONDS_REMEMBERED = 4096  # texts of whole seconds kept; events come close together in time

TimeWriter: TypeAlias = Callable[[int], str]
"""Writes a moment as the mapping's time_format says."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIRECTIVE = re.compile(r"%[-_0^#]?[A-Za-z]")


def nanoseconds(timestamp: Timestamp) -> int:
    """The moment of a Timestamp, moved to the nearest one between the years 1 and 9999."""
    return _clamped(timestamp.seconds * SECOND + timestamp.nanos)


def event_moment(message: event_pb2.Identify | event_pb2.Track, accepted_at: int) -> tuple[int, tuple[str, ...]]:
    """When an event happened, and the fields (Segment's names) that say so.

    It is `timestamp`; else `receivedAt - (sentAt - originalTimestamp)` where all three are there and the result lies
    between the years 1 and 9999; else `originalTimestamp`; else when the service took the event.

    Args:
        message: the event.
        accepted_at: milliseconds since the epoch.
    """
    if message.HasField("timestamp"):
        return nanoseconds(message.timestamp), ("timestamp",)
    if not message.HasField("original_timestamp"):
        return _clamped(accepted_at * MILLISECOND), ()
    original = nanoseconds(message.original_timestamp)
    if message.HasField("received_at") and message.HasField("sent_at"):
        moment = nanoseconds(message.received_at) - (nanoseconds(message.sent_at) - original)
        if FIRST_MOMENT <= moment <= LAST_MOMENT:
            return moment, ("receivedAt", "sentAt", "originalTimestamp")
    return original, ("originalTimestamp",)


def iso8601(moment: int) -> str:
    """A moment as ISO 8601 in UTC with milliseconds, such as "2026-02-23T22:28:55.111Z"; the rest is cut off."""
    seconds, rest = divmod(moment, SECOND)
    return f"{_whole_second(seconds)}.{rest // MILLISECOND:03d}Z"


def time_writer(time_format: str) -> TimeWriter:
    """The writer of a time_format: "iso8601", or an strftime pattern, whose times are in UTC.

    Raises:
        ValueError: the format is neither.
    """
    if time_format == ISO8601:
        return iso8601
    if not _DIRECTIVE.search(time_format.replace("%%", "")):
        raise ValueError(time_format)

    def write(moment: int) -> str:
        return (_EPOCH + timedelta(microseconds=moment // MICROSECOND)).strftime(time_format)

    for moment in (FIRST_MOMENT, 0, LAST_MOMENT):  # so that a pattern that strftime refuses is found at start
        write(moment)
    return write


@lru_cache(maxsize=SECONDS_REMEMBERED)
def _whole_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


def _clamped(moment: int) -> int:
    if FIRST_MOMENT <= moment <= LAST_MOMENT:
        return moment
    return FIRST_MOMENT if moment < FIRST_MOMENT else LAST_MOMENT
