"""Types of setting values: addresses, URLs, files, tokens, counts, durations and sizes.

Each kind is an annotated type that reads the text of an environment variable, checks it, and knows how a log shows it.
An unusable value is a `ValueError` that names valid forms; `service.config.settings` puts the setting's name before it.
Values that may be secret are never repeated in a message.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr

from service.config.address import NATS_SCHEMES, URL_CHARACTERS, Listen, NatsServers
from service.config.token import legal_token, read_token, regular_file
from service.config.units import format_duration, format_size, parse_duration, parse_size

LARGEST_COUNT: Final = 2**63 - 1  # the largest integer of SQLite
LONGEST_DURATION: Final = 36500 * 86400.0  # seconds; keeps every sum of times within the ranges of SQLite and datetime

_STREAM_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def _parsed_by(parse: Callable[[str], object]) -> BeforeValidator:
    """Read text with `parse`; values that are not text, as tests and defaults have them, pass as they are."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def whole(minimum: int, maximum: int = LARGEST_COUNT) -> BeforeValidator:
    """Read a whole number within bounds, both included."""
    span = (
        f"a whole number from {minimum} to {maximum}"
        if maximum < LARGEST_COUNT
        else f"a whole number from {minimum} up"
    )

    def read(value: object) -> object:
        if isinstance(value, str):
            value = int(value) if re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value) else value
        if not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError(f"{value!r} is not {span}")
        return value

    return BeforeValidator(read)


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return word in _TRUE


def _duration_in_bounds(seconds: float) -> float:
    if not 0 <= seconds <= LONGEST_DURATION:
        raise ValueError(f"expected a duration from 0s to {format_duration(LONGEST_DURATION)}")
    return seconds


def _above_zero(value: float) -> float:
    if value <= 0:
        raise ValueError("0 makes no sense here: expected more than zero")
    return value


def _size_in_bounds(size: int) -> int:
    if not 0 <= size <= LARGEST_COUNT:
        raise ValueError(f"expected a size from 0 to {LARGEST_COUNT} bytes")
    return size


def _url(text: str) -> str:
    """Check that this is an http(s) URL; messages do not repeat it, as it may hold a password."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no port
        usable = False
    if not usable or not URL_CHARACTERS.fullmatch(text):
        raise ValueError("is not a URL: expected http:// or https://, a host, and only characters that a URL may have")
    return text


def _api_url(text: str) -> str:
    parts = urlsplit(_url(text))
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password: Pointillist knows callers by POINTILLIST_API_TOKEN")
    if "#" in text:
        raise ValueError("must not hold a fragment (#...): no server ever sees one")
    return text


def _outbox_url(text: str) -> str:
    expected = "expected sqlite:///outbox.db (three slashes: relative) or sqlite:////var/lib/outbox.db (four: absolute)"
    if text.startswith(NATS_SCHEMES):
        NatsServers.parse(text)
        return text
    path = text.removeprefix("sqlite:///")
    if path == text or not path or path.endswith("/") or path.startswith(":memory:") or set(path) & set("?#\0"):
        raise ValueError(f"is not the URL of an outbox file: {expected}, or nats://host:4222")
    return text


def _stream_prefix(text: str) -> str:
    if not _STREAM_PREFIX.fullmatch(text):
        raise ValueError(f"{text!r} cannot begin the name of a stream: expected 1 to 64 letters, digits, - and _")
    return text


def _token_file(path: Path) -> Path:
    read_token(path)
    return path


def without_secrets(url: str) -> str:
    """Write a URL for a log: a user name, a password or a query may be a secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"redacted@{host}" if host != parts.netloc else host
    return parts._replace(netloc=netloc, query="redacted" if parts.query else "").geturl()


def _shown_by(write: Callable[[Any], str]) -> PlainSerializer:
    """Write a value as `effective` shows it; Python code gets the value itself."""
    return PlainSerializer(write, return_type=str, when_used="json")


Duration = Annotated[float, _parsed_by(parse_duration), AfterValidator(_duration_in_bounds), _shown_by(format_duration)]
PositiveDuration = Annotated[Duration, AfterValidator(_above_zero)]
Size = Annotated[int, _parsed_by(parse_size), AfterValidator(_size_in_bounds), _shown_by(format_size)]
PositiveSize = Annotated[Size, AfterValidator(_above_zero)]
Switch = Annotated[bool, _parsed_by(_truth)]
Address = Annotated[Listen, _parsed_by(Listen.parse), _shown_by(str)]
Token = Annotated[
    SecretStr,
    AfterValidator(lambda token: SecretStr(legal_token(token.get_secret_value()))),
    _shown_by(lambda _: "set"),
]
TokenFile = Annotated[Path, AfterValidator(_token_file)]
ReadableFile = Annotated[Path, AfterValidator(regular_file)]
ApiUrl = Annotated[str, AfterValidator(_api_url), _shown_by(without_secrets)]
ProxyUrl = Annotated[str, AfterValidator(_url), _shown_by(without_secrets)]
OutboxUrl = Annotated[
    str,
    AfterValidator(_outbox_url),
    _shown_by(lambda url: without_secrets(url) if url.startswith(NATS_SCHEMES) else url),
]
StreamPrefix = Annotated[str, AfterValidator(_stream_prefix)]
