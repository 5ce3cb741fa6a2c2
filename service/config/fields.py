"""What the values of settings are: addresses, URLs, files, tokens, counts, durations and sizes.

Each kind is an annotated type that reads the text of an environment variable, checks it, and knows how a log shows it.
Every fault is a `ValueError` that says what would be right; `service.config.settings` puts the setting's name before
it. Values that may be secret are never repeated in a message.
"""

import ipaddress
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr

from service.config.units import format_duration, format_size, parse_duration, parse_size

LARGEST_COUNT: Final = 2**63 - 1  # what SQLite can hold
LONGEST_DURATION: Final = 36500 * 86400.0  # seconds; keeps every sum of times within what SQLite and datetime can hold
LONGEST_TOKEN: Final = 8192  # characters; HTTP servers refuse longer header lines

NATS_SCHEMES: Final = ("nats://", "tls://")
NATS_PORT: Final = 4222  # where NATS listens by default

_STREAM_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_PRINTABLE = re.compile(r"[ -~]+")
_URL_CHARACTERS = re.compile(r"[!-~]+")
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write `HOST:PORT`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST:PORT` or `[IPv6]:PORT`, the port from 0 to 65535.

        Raises:
            ValueError: with what was wrong and what would be right.
        """
        host, _, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            good_host = _is_ipv6(host)
        else:
            good_host = _HOST_NAME.fullmatch(host) is not None
        if not good_host or re.fullmatch(r"[0-9]{1,5}", port) is None or int(port) > 65535:
            raise ValueError(
                f"{text!r} is not an address to listen on: expected HOST:PORT with a port from 0 to 65535, "
                "such as 127.0.0.1:50051, 0.0.0.0:50051 or [::1]:50051"
            )
        return cls(host, int(port))


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


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
    if not usable or not _URL_CHARACTERS.fullmatch(text):
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


@dataclass(frozen=True, slots=True)
class NatsServers:
    """The servers of one NATS system, and how it knows us."""

    is_tls: bool
    hosts: tuple[Listen, ...]
    user: str | None = field(default=None, repr=False)
    """A user name or, where there is no password, a token."""
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `nats://host:4222`, or `tls://`, with several hosts after commas and `user:password@` before them.

        Raises:
            ValueError: with what would be right; the text is not repeated, as it may hold a password.
        """
        scheme, _, rest = text.partition("://")
        login, _, hosts = rest.removesuffix("/").rpartition("@")
        user, colon, password = login.partition(":")
        try:
            found = tuple(_nats_host(host) for host in hosts.split(",") if _URL_CHARACTERS.fullmatch(text))
        except ValueError:
            found = ()
        if not found:
            raise ValueError(
                "is not the URL of NATS servers: expected nats://host:4222, or tls:// where they have TLS; further"
                " hosts follow after a comma, as in nats://a:4222,b:4222, and user:password@ may stand before the first"
            )
        return cls(scheme == "tls", found, unquote(user) or None, unquote(password) if colon else None)


def _nats_host(text: str) -> Listen:
    """Read HOST or HOST:PORT."""
    has_port = ":" in text.rpartition("]")[2]
    host = Listen.parse(text if has_port else f"{text}:{NATS_PORT}")
    if host.port == 0:
        raise ValueError(text)
    return host


def _stream_prefix(text: str) -> str:
    if not _STREAM_PREFIX.fullmatch(text):
        raise ValueError(f"{text!r} cannot begin the name of a stream: expected 1 to 64 letters, digits, - and _")
    return text


def _regular_file(path: Path) -> Path:
    """Check that a path names a regular file that can be opened; messages quote it, so that they stay one line."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        if regular:  # opening a pipe would wait for its writer
            path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL, which TOML can hold
        regular = False
    if not regular:
        raise ValueError(f"{str(path)!r} is not a regular file")
    return path


def legal_token(text: str) -> str:
    """Check a token, without the whitespace around it; messages never repeat it."""
    token = text.strip()
    if not token:
        raise ValueError("holds no token: it is empty")
    if not _PRINTABLE.fullmatch(token) or len(token) > LONGEST_TOKEN:
        raise ValueError(
            f"holds something that no HTTP header can carry: expected at most {LONGEST_TOKEN} characters, "
            "all printable ASCII, on one line"
        )
    return token


def read_token(path: Path) -> str:
    """Read the token that is all a file holds, without the whitespace around it.

    Raises:
        ValueError: when the file is not there, or what it holds is no token; the message never repeats it.
    """
    try:
        text = _regular_file(path).read_bytes().decode("latin-1")  # any byte decodes; the check comes after
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    try:
        return legal_token(text)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} {error}") from None


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
ReadableFile = Annotated[Path, AfterValidator(_regular_file)]
ApiUrl = Annotated[str, AfterValidator(_api_url), _shown_by(without_secrets)]
ProxyUrl = Annotated[str, AfterValidator(_url), _shown_by(without_secrets)]
OutboxUrl = Annotated[
    str,
    AfterValidator(_outbox_url),
    _shown_by(lambda url: without_secrets(url) if url.startswith(NATS_SCHEMES) else url),
]
StreamPrefix = Annotated[str, AfterValidator(_stream_prefix)]
