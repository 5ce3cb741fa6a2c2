"""The forms of time that Segment's libraries write, read as a Timestamp.

Segment's page asks for ISO 8601. Its libraries send RFC 3339 with milliseconds (JavaScript, Swift),
microseconds (Python, PHP), seven digits (C#) or nanoseconds (Go), with `Z` or an offset; older code sends epoch
numbers.
A text that could be read in two ways, such as `03/04/2024` or digits in a string, is refused rather than guessed.
"""

import datetime as dt
import decimal
import math
import re

from google.protobuf import timestamp_pb2

RIGHT_FORMS = 'write RFC 3339 ("2024-03-10T02:30:00.000Z"), or epoch seconds or milliseconds as a number'

EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
EARLIEST = -62_135_596_800  # 0001-01-01T00:00:00Z, in epoch seconds: the first that a Timestamp may hold
LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z, likewise the last
MILLISECONDS_FROM = 100_000_000_000  # an epoch number this large or larger is milliseconds (as seconds: the year 5138)
SHOWN = 40  # characters of an unreadable time that its error repeats

# The zone may be missing (UTC); the time may be missing (midnight UTC).
_FORM = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):?(\d\d))?)?",
    re.ASCII,
)


def read_time(value: object) -> timestamp_pb2.Timestamp:
    """Reads a time, whether a string or an epoch number.

    Digits beyond the nanosecond are cut, not rounded. A leap second (`23:59:60`) is the instant of the second after it.

    Args:
        value: a value out of parsed JSON, neither `None` nor "".

    Raises:
        ValueError: it is no time, or not one of the years 0001 to 9999; the message names a valid form.
    """
    if isinstance(value, str):
        return _read_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _read_number(value)
    raise ValueError(f"is not a time; {RIGHT_FORMS}")


def _read_text(text: str) -> timestamp_pb2.Timestamp:
    match = _FORM.fullmatch(text)
    if match is None:
        raise _unreadable(text)
    year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    try:
        days = dt.date(int(year), int(month), int(day)).toordinal() - EPOCH_DAY
    except ValueError as error:  # such as February 30
        raise _unreadable(text) from error
    if hour is None:
        return _timestamp(days * 86_400, 0)
    if not (hour <= "23" and minute <= "59" and second <= "60"):
        raise _unreadable(text)
    seconds = days * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(second)
    if sign is not None:
        if not (offset_hours <= "23" and offset_minutes <= "59"):
            raise _unreadable(text)
        offset = int(offset_hours) * 3_600 + int(offset_minutes) * 60
        seconds += offset if sign == "-" else -offset
    return _timestamp(seconds, int(fraction[:9].ljust(9, "0")) if fraction else 0)


def _read_number(number: float) -> timestamp_pb2.Timestamp:
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"is not a finite number; {RIGHT_FORMS}")
    milliseconds = abs(number) >= MILLISECONDS_FROM
    if abs(number) > LATEST * 1_000:
        raise _out_of_range()
    # The decimal as it was written, and not the double's own digits, so that 1700000000.123 keeps exactly its 123 ms.
    written = decimal.Decimal(repr(number)).scaleb(6 if milliseconds else 9)
    nanoseconds = int(written.to_integral_value(decimal.ROUND_FLOOR))
    return _timestamp(*divmod(nanoseconds, 1_000_000_000))


def _timestamp(seconds: int, nanos: int) -> timestamp_pb2.Timestamp:
    if not EARLIEST <= seconds <= LATEST:
        raise _out_of_range()
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)


def _unreadable(text: str) -> ValueError:
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return ValueError(f"cannot read {shown!a} as a time; {RIGHT_FORMS}")


def _out_of_range() -> ValueError:
    return ValueError("is not within the years 0001 to 9999, which is all that a Timestamp holds")
