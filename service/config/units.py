"""Durations and sizes as people write them: `5m`, `24h`, `10GiB`.

Durations become seconds (`float`), sizes become bytes (`int`). Nothing here knows where the text came from: callers put
the name of the setting in front of the message.
"""

import math
import re
from decimal import Decimal

# Written out rather than `\d`, which also takes the digits of other scripts.
_DURATION = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>ms|s|m|h|d)")
_BARE_ZERO = re.compile(r"0+(?:\.0+)?")
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[a-zA-Z]*)")

_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
_LONGEST = 32  # characters; more is no number that a person meant, and Decimal would work on it for long

_DURATION_EXPECTED = "expected a number with a unit ms, s, m, h or d, such as 50ms, 10s, 5m, 24h or 7d"
_SIZE_EXPECTED = "expected bytes, or a number with a unit such as KiB, MiB, GiB, KB, MB or GB, such as 512MiB or 10GiB"


def parse_duration(text: str) -> float:
    """Read a duration such as `50ms`, `1.5s` or `7d`.

    A bare number is refused unless it is 0, because nobody can tell whether its seconds or milliseconds were meant.

    Returns:
        Seconds, zero or more.

    Raises:
        ValueError: the message quotes the text and names valid forms.
    """
    stripped = text.strip()
    if _BARE_ZERO.fullmatch(stripped):
        return 0.0
    match = _DURATION.fullmatch(stripped) if len(stripped) <= _LONGEST else None
    if match is None:
        raise ValueError(f"{_shown(text)} is not a duration: {_DURATION_EXPECTED}")
    return float(Decimal(match["number"]) * _SECONDS[match["unit"]])


def format_duration(seconds: float) -> str:
    """Write seconds as the text that `parse_duration` reads back, in the largest unit that needs no fraction.

    A duration with a fraction of a second is written in seconds, one below a second in milliseconds.

    Args:
        seconds: a finite number; a negative one keeps its sign, although no setting can have it.
    """
    if seconds < 0:
        return "-" + format_duration(-seconds)
    for unit in ("d", "h", "m"):
        size = int(_SECONDS[unit])
        if seconds >= size and math.fmod(seconds, size) == 0:
            return f"{int(seconds) // size}{unit}"
    exact = Decimal(repr(float(seconds)))
    if 0 < seconds < 1:
        return f"{_plain(exact * 1000)}ms"
    return f"{_plain(exact)}s"


def parse_size(text: str) -> int:
    """Read a size such as `10GiB` (powers of 1024), `10GB` (powers of 1000) or `1000` (bytes).

    Units are read in any case. A fraction is taken where it comes to whole bytes, as in `1.5GiB`.

    Returns:
        Bytes, zero or more.

    Raises:
        ValueError: the message quotes the text and names valid forms.
    """
    stripped = text.strip()
    match = _SIZE.fullmatch(stripped) if len(stripped) <= _LONGEST else None
    factor = _BYTES.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{_shown(text)} is not a size: {_SIZE_EXPECTED}")
    numerator, denominator = Decimal(match["number"]).as_integer_ratio()
    whole, rest = divmod(numerator * factor, denominator)
    if rest:
        raise ValueError(f"{_shown(text)} is not a whole number of bytes: {_SIZE_EXPECTED}")
    return whole


def format_size(size: int) -> str:
    """Write bytes as the text that `parse_size` reads back, in the largest unit that needs no fraction."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _BYTES[unit.lower()]
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _plain(number: Decimal) -> str:
    """Write a decimal without an exponent and without a trailing `.0`."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shown(text: str) -> str:
    """Quote the given text, shortened so that a message stays one line."""
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
