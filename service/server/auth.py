"""Authenticates callers by bearer token, authorizes the method, and applies the rate limit."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from service.intake.callers import Caller, Callers, digest_of
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
    methods: frozenset[str] = frozenset()
    """Full paths that it may call, where callers show tokens."""
    digest: bytes = field(default=b"", repr=False)
    """Of the token that it showed; empty without one."""


def authorized(admission: Admission, path: str) -> Admission:
    """Let a caller that showed a token call a method, by its full path.

    Raises:
        StatusError: PERMISSION_DENIED.
    """
    if path not in admission.methods:
        raise status.not_allowed(admission.caller or "", path)
    return admission


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

    def identify(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Admission:
        """Return the caller and what it may use, by the token in its metadata.

        Raises:
            StatusError: UNAUTHENTICATED.
        """
        shown = next((value for key, value in metadata or () if key == AUTHORIZATION), None)
        if shown is None:
            raise status.no_token()
        scheme, _, token = str(shown).partition(" ")
        if scheme.lower() != SCHEME:
            raise status.unknown_token()
        admission = self._admission(digest_of(token.strip()))
        self._count(admission.caller or "")
        return admission

    def again(self, admission: Admission, path: str) -> Admission:
        """Return what a caller may use now; asked while a stream goes on, once the callers in force are others.

        Raises:
            StatusError: UNAUTHENTICATED where its token is nobody's now, PERMISSION_DENIED where its method is not.
        """
        return authorized(self._admission(admission.digest), path)

    def _admission(self, digest: bytes) -> Admission:
        caller = self._callers().find_digest(digest)
        if caller is None:
            raise status.unknown_token()
        return Admission(caller.name, self._bucket(caller), caller.max_calls, caller.methods, digest)

    def _bucket(self, caller: Caller) -> TokenBucket | None:
        """Return the bucket of a caller, which all its calls share; a new one if its rate has changed."""
        if caller.events_per_second is None:
            return None
        bucket = self._buckets.get(caller.name)
        if bucket is None or (bucket.per_second, bucket.burst) != (caller.events_per_second, caller.burst):
            bucket = self._buckets[caller.name] = TokenBucket(caller.events_per_second, caller.burst, self._now)
        return bucket
