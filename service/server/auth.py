"""Authenticates callers by bearer token, authorizes the method, and applies the rate limit."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from service.intake.callers import Caller, Callers
from service.intake.token_bucket import TokenBucket
from service.server import status

AUTHORIZATION = "authorization"
SCHEME = "bearer"
MAX_SUBJECT = 100  # characters of a certificate's common name


@dataclass(frozen=True, slots=True)
class Admission:
    """An authenticated and authorized caller."""

    caller: str | None
    """Its name; None without authentication."""
    bucket: TokenBucket | None
    """Its rate limit; None if it has none."""
    max_calls: int | None = None
    """Its calls at a time; None for half of the process' bound."""


def subject(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """Return the common name in the certificate of a caller, by which it is known without a callers file."""
    for name in auth_context.get("x509_common_name", ()):
        return name.decode(errors="replace")[:MAX_SUBJECT]
    return None


class Authenticator:
    """The authenticator of one server."""

    def __init__(self, callers: Callable[[], Callers], now: Callable[[], float], count: Callable[[str], None]) -> None:
        """Create it.

        Args:
            callers: returns the callers in force.
            now: returns steady seconds.
            count: called with the name of each caller that presents a valid token.
        """
        self._callers = callers
        self._now = now
        self._count = count
        self._buckets: dict[str, TokenBucket] = {}

    def identify(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
        """Return the caller, by the token in its metadata.

        Raises:
            StatusError: UNAUTHENTICATED.
        """
        shown = next((value for key, value in metadata or () if key == AUTHORIZATION), None)
        if shown is None:
            raise status.no_token()
        scheme, _, token = str(shown).partition(" ")
        caller = self._callers().find(token.strip()) if scheme.lower() == SCHEME else None
        if caller is None:
            raise status.unknown_token()
        self._count(caller.name)
        return caller

    def admission(self, caller: Caller) -> Admission:
        """Return what a caller may use."""
        return Admission(caller.name, self._bucket(caller), caller.max_calls)

    @staticmethod
    def authorize(caller: Caller, path: str) -> None:
        """Let a caller call a method, by its full path.

        Raises:
            StatusError: PERMISSION_DENIED.
        """
        if path not in caller.methods:
            raise status.not_allowed(caller.name, path)

    def _bucket(self, caller: Caller) -> TokenBucket | None:
        """Return the bucket of a caller, which all its calls share; a new one if its rate has changed."""
        if caller.events_per_second is None:
            return None
        bucket = self._buckets.get(caller.name)
        if bucket is None or (bucket.per_second, bucket.burst) != (caller.events_per_second, caller.burst):
            bucket = self._buckets[caller.name] = TokenBucket(caller.events_per_second, caller.burst, self._now)
        return bucket
