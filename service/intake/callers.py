"""Callers: named by an operator in a file, with their tokens, methods and rates.

    [callers.checkout]
    sha256 = "8f43…"                      # of the token; a list of two while a token is being changed
    methods = ["EventService"]            # the default; a service, or one method such as "EventService/Track"
    events_per_second = 500               # no limit without it
    burst = 1000                          # one second's worth without it

The file holds hashes alone, so that it is no secret. Tokens are long and random, so that a plain SHA-256 is enough:
there is nothing to guess, and no salt or slow hash would make it harder.
"""

import difflib
import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final

from pointillist_destination.v1 import dead_letter_service_pb2, event_service_pb2
from service.config.watched_file import WatchedFile
from service.errors import SettingsError

SETTING: Final = "POINTILLIST_CALLERS_FILE"
MAX_CALLERS: Final = 1_000  # each is a time series
MAX_RATE: Final = 1e9  # events a second; above it no limit is meant
MAX_CALLS: Final = 1_000_000  # at a time; far above any process' own bound
DEFAULT_METHODS: Final = ("EventService",)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_SERVICES = {
    service.name: service
    for file in (event_service_pb2.DESCRIPTOR, dead_letter_service_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
}
_HOW_TO_HASH = 'printf %s "$token" | sha256sum makes them, and openssl rand -hex 32 makes a token'


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller."""

    name: str
    digests: tuple[bytes, ...] = field(repr=False)
    """SHA-256 of each token that it may show."""
    methods: frozenset[str]
    """Full paths, such as `/pointillist_destination.v1.EventService/Track`."""
    events_per_second: float | None = None
    """None for no limit."""
    burst: float = 0.0
    """Events."""
    max_calls: int | None = None
    """Calls at a time; None for half of the process' bound."""


@dataclass(frozen=True, slots=True)
class Callers:
    """All callers of a file."""

    by_digest: dict[bytes, Caller] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Their names, in the order of the file."""
        return list(dict.fromkeys(caller.name for caller in self.by_digest.values()))

    def find(self, token: str) -> Caller | None:
        """Find whose token this is; None where it is nobody's.

        Its duration reveals nothing of any token: a hash of the presented one is looked up, and compared
        in constant time.
        """
        return self.find_digest(digest_of(token))

    def find_digest(self, digest: bytes) -> Caller | None:
        """Find whose token has this digest; None where it is nobody's."""
        caller = self.by_digest.get(digest)
        if caller is None or not any([hmac.compare_digest(digest, one) for one in caller.digests]):  # noqa: C419  all
            return None
        return caller


def digest_of(token: str) -> bytes:
    """Return the digest by which a token is known."""
    return hashlib.sha256(token.encode()).digest()


def read_callers(text: str) -> Callers:
    """Read the text of a callers file.

    Raises:
        ValueError: with one line for each fault, all faults at once; a value that may be a token is not repeated.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is not TOML: {error}") from None
    faults = [f"{key}: there is no such key; expected tables such as [callers.checkout]" for key in content]
    tables = content.get("callers")
    if not isinstance(tables, dict) or not tables:
        raise ValueError("names nobody, so that nobody could call: expected tables such as [callers.checkout]")
    faults = [fault for fault in faults if not fault.startswith("callers:")]
    if len(tables) > MAX_CALLERS:
        raise ValueError(f"names {len(tables)} callers: expected {MAX_CALLERS} at most")
    by_digest: dict[bytes, Caller] = {}
    for name, table in tables.items():
        caller = _read_caller(name, table, faults)
        for digest in caller.digests:
            if digest in by_digest:
                faults.append(f"[callers.{name}] sha256: it is that of {by_digest[digest].name} too; give each its own")
            by_digest[digest] = caller
    if faults:
        raise ValueError("\n".join(faults))
    return Callers(by_digest)


def _read_caller(name: str, table: object, faults: list[str]) -> Caller:
    place = f"[callers.{name}]"
    known = ("sha256", "methods", "events_per_second", "burst", "max_calls")
    if not isinstance(table, dict):
        faults.append(f"callers.{name}: expected a table, such as {place} and sha256 = … below it")
        table = {"sha256": []}
    if not _NAME.fullmatch(name):
        faults.append(f"{place}: a name is 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
    for key in table:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            faults.append(f"{place} {key}: there is no such key; the nearest is {nearest}")
    rate = _read_number(place, "events_per_second", table.get("events_per_second"), faults)
    burst = _read_number(place, "burst", table.get("burst"), faults)
    if burst is not None and rate is None and "events_per_second" not in table:
        faults.append(f"{place} burst: says nothing without events_per_second")
    return Caller(
        name,
        _read_digests(place, table.get("sha256"), faults),
        frozenset(_read_methods(place, table.get("methods", list(DEFAULT_METHODS)), faults)),
        rate,
        max(1.0, rate or 0.0) if burst is None else burst,
        _read_max_calls(place, table.get("max_calls"), faults),
    )


def _read_digests(place: str, value: object, faults: list[str]) -> tuple[bytes, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in texts):
        faults.append(f"{place} sha256: expected the 64 hexadecimal digits of a token's SHA-256: {_HOW_TO_HASH}")
        return ()
    return tuple(map(bytes.fromhex, texts))


def _read_methods(place: str, value: object, faults: list[str]) -> Iterator[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        faults.append(f'{place} methods: expected a list of names, such as ["EventService", "DeadLetterService/List"]')
        return
    for name in value:
        service_name, _, method_name = name.partition("/")
        service = _SERVICES.get(service_name)
        if service is None or (method_name and method_name not in service.methods_by_name) or name.endswith("/"):
            choice = [
                *_SERVICES,
                *(f"{one.name}/{method.name}" for one in _SERVICES.values() for method in one.methods),
            ]
            nearest = difflib.get_close_matches(name, choice, n=1, cutoff=0.0)[0]
            faults.append(f"{place} methods: there is no {name!r}; the nearest is {nearest!r}")
            continue
        for method in [method_name] if method_name else service.methods_by_name:
            yield f"/{service.full_name}/{method}"


def _read_number(place: str, key: str, value: Any, faults: list[str]) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    least = 1 if key == "burst" else 0
    if not is_number or not isfinite(value) or value < least or value == 0 or value > MAX_RATE:
        bounds = f"from 1 to {MAX_RATE:.0f}" if least else f"above 0 and up to {MAX_RATE:.0f}"
        faults.append(f"{place} {key}: expected a number of events {bounds}")
        return None
    return float(value)


def _read_max_calls(place: str, value: object, faults: list[str]) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_CALLS:
        faults.append(f"{place} max_calls: expected a whole number of calls at a time from 1 to {MAX_CALLS}")
        return None
    return value


def watch_callers(path: Path) -> WatchedFile[Callers]:
    """Read the callers from a file, and again whenever the file changes.

    Raises:
        SettingsError: the file cannot be used.
    """
    return WatchedFile([path], lambda: _read_file(path))


def _read_file(path: Path) -> Callers:
    try:
        return read_callers(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{SETTING}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{SETTING}: {path} is not TOML: it is not UTF-8 text") from None
    except ValueError as error:
        lines = str(error).splitlines()
        raise SettingsError("\n".join(f"{SETTING}: {path}: {line}" for line in lines)) from None
