"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("0s", 0.0),
        ("0", 0.0),
        ("0.0", 0.0),
        ("1.5s", 1.5),
        ("10s", 10.0),
        ("5m", 300.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("0.1d", 8640.0),
        (" 10s\n", 10.0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "10", "1.5", "s", "-1s", "+1s", "1e3s", "10 s", "10S", "1w", "1h30m", ".5s", "5.s", "٣s", "9" * 40 + "s"],
)
def test_a_text_that_is_no_duration_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: expected .* such as 50ms, 10s, 5m, 24h or 7d"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.05, "50ms"),
        (0.0005, "0.5ms"),
        (1.5, "1.5s"),
        (10, "10s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (7200.0, "2h"),
        (604800.0, "7d"),
        (-1.5, "-1.5s"),
    ],
)
def test_a_duration_is_written_in_the_largest_unit_without_a_fraction(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(milliseconds=st.integers(min_value=0, max_value=10**13))
def test_a_written_duration_reads_back_the_same(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1000B", 1000),
        ("64KiB", 65536),
        ("512MiB", 512 * 1024**2),
        ("10GiB", 10 * 1024**3),
        ("1TiB", 1024**4),
        ("10GB", 10 * 1000**3),
        ("10gb", 10 * 1000**3),
        ("5kB", 5000),
        ("1.5GiB", 1536 * 1024**2),
        (" 64KiB ", 65536),
    ],
)
def test_a_size_is_read_as_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "10 GiB", "10G", "10Gib/s", "1e3", "٣KiB", "9" * 40])
def test_a_text_that_is_no_size_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: expected .* such as 512MiB or 10GiB"):
        parse_size(text)


def test_a_size_with_a_part_of_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'0\.3KiB' is not a whole number of bytes"):
        parse_size("0.3KiB")


@given(size=st.integers(min_value=0, max_value=2**63))
def test_a_written_size_reads_back_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(text=st.text())
def test_any_text_is_either_read_or_refused_in_one_line(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017  either outcome is right
