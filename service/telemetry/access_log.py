"""One log line a call, but no flood of them.

Each method may have so many lines a second; the next line that is written says how many were left out before it.
Calls that fail have an allowance of their own, which some more may use at once, so that a busy day does not hide them
and an attack does not fill the disk.
"""

from collections.abc import Callable
from urllib.parse import unquote

import structlog

from service.telemetry.allowance import Allowance

OK_LINES = 10.0  # a second and method
MAX_OK_LINES = 10  # at once
FAILED_LINES = 5.0  # a second and method
MAX_FAILED_LINES = 50  # at once
MAX_UNKNOWN_PATH = 100  # characters

log = structlog.get_logger()


class AccessLog:
    """Writes the lines."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Make it.

        Args:
            now: seconds, steady.
        """
        self._now = now
        self._allowances: dict[tuple[str, bool], Allowance] = {}

    def note(self, path: str, code: str, seconds: float, peer: str, caller: str | None, **more: object) -> None:
        """Note the end of a call.

        Args:
            path: of its method.
            code: the name of its gRPC code.
            seconds: how long it took.
            peer: where it came from, as gRPC says it.
            caller: who showed a token; None where nobody did.
            more: further fields of the line.
        """
        is_ok = code == "OK"
        allowance = self._allowance(path, is_ok=is_ok)
        if allowance is None:
            return
        if suppressed := allowance.told():
            more["suppressed"] = suppressed
        if caller is not None:
            more["caller"] = caller
        log.info("call", method=path.lstrip("/"), code=code, ms=round(seconds * 1000, 2), peer=host(peer), **more)

    def note_unknown(self, path: str) -> None:
        """Note a call of a method that there is not, which gRPC answers; the path is the caller's, escaped and cut."""
        allowance = self._allowance("", is_ok=False)
        if allowance is not None:
            shown = ascii(path)[1:-1][:MAX_UNKNOWN_PATH]
            more = {"suppressed": suppressed} if (suppressed := allowance.told()) else {}
            log.info("call of an unknown method", path=shown, code="UNIMPLEMENTED", **more)

    def _allowance(self, path: str, *, is_ok: bool) -> Allowance | None:
        """Return the allowance of a method if it has a line left."""
        now = self._now()
        allowance = self._allowances.get((path, is_ok))
        if allowance is None:
            most, per_second = (MAX_OK_LINES, OK_LINES) if is_ok else (MAX_FAILED_LINES, FAILED_LINES)
            allowance = self._allowances[path, is_ok] = Allowance(most, per_second, now)
        return allowance if allowance.take(now) else None


def host(peer: str) -> str:
    """The address in a peer as gRPC writes it, without the port: a port is new with each connection.

    `ipv4:127.0.0.1:4711` and `ipv6:%5B::1%5D:4711` are such; any other, as a Unix socket, stays as it is.
    """
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    return unquote(rest).rpartition(":")[0].strip("[]")
