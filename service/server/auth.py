"""The gate that every call passes: whose it is, whether it may call this method, and how often."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.intake.callers import Caller, Callers
from service.intake.token_bucket import TokenBucket
from service.server import status

AUTHORIZATION = "authorization"
SCHEME = "bearer"


@dataclass(frozen=True, slots=True)
class Admission:
    """A caller that was let in."""

    caller: str | None
    """Its name; None where there is no gate and nobody is asked."""
    bucket: TokenBucket | None
    """Its rate; None where it has no limit."""


class Authenticator:
    """The gate of one server."""

    def __init__(self, callers: Callable[[], Callers], now: Callable[[], float], count: Callable[[str], None]) -> None:
        """Make it.

        Args:
            callers: gives the callers in force.
            now: seconds, steady.
            count: told the name of each caller that shows a right token.
        """
        self._callers = callers
        self._now = now
        self._count = count
        self._buckets: dict[str, TokenBucket] = {}

    def identify(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
        """Tell whose call this is, by the token in its metadata.

        Raises:
            Fault: UNAUTHENTICATED.
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

    def admit(self, metadata: Iterable[tuple[str, str | bytes]] | None, path: str) -> Admission:
        """Let a call in.

        Args:
            metadata: what the caller sent with it.
            path: the full path of its method.

        Raises:
            Fault: UNAUTHENTICATED or PERMISSION_DENIED.
        """
        caller = self.identify(metadata)
        if path not in caller.methods:
            raise status.not_allowed(caller.name, path)
        return Admission(caller.name, self._bucket(caller))

    def _bucket(self, caller: Caller) -> TokenBucket | None:
        """The bucket of a caller; all its calls share it, and it is a new one where the file gave it another rate."""
        if caller.events_per_second is None:
            return None
        bucket = self._buckets.get(caller.name)
        if bucket is None or (bucket.per_second, bucket.burst) != (caller.events_per_second, caller.burst):
            bucket = self._buckets[caller.name] = TokenBucket(caller.events_per_second, caller.burst, self._now)
        return bucket
