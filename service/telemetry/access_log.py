"""One log line a call, but no flood of them.

Each method may have so many lines a second; the next line that is written says how many were left out before it.
Calls that fail have an allowance of their own, ten times as large, so that a busy day does not hide them and an attack
does not fill the disk.
"""

from collections.abc import Callable
from urllib.parse import unquote

import structlog

MAX_OK_LINES = 10  # a second and method
MAX_FAILED_LINES = 100  # a second and method

log = structlog.get_logger()


class _Allowance:
    """The lines of one second."""

    __slots__ = ("left", "second", "suppressed")

    def __init__(self) -> None:
        self.second = -1
        self.left = 0
        self.suppressed = 0


class AccessLog:
    """Writes the lines."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Make it.

        Args:
            now: seconds, steady.
        """
        self._now = now
        self._allowances: dict[tuple[str, bool], _Allowance] = {}

    def note(
        self, path: str, code: str, seconds: float, peer: Callable[[], str], caller: str | None, **more: object
    ) -> None:
        """Note the end of a call.

        Args:
            path: of its method.
            code: the name of its gRPC code.
            seconds: how long it took.
            peer: gives where it came from, as gRPC says it; asked only when there is a line.
            caller: who showed a token; None where nobody did.
            more: further fields of the line.
        """
        is_ok = code == "OK"
        allowance = self._allowances.setdefault((path, is_ok), _Allowance())
        second = int(self._now())
        if second != allowance.second:
            allowance.second, allowance.left = second, MAX_OK_LINES if is_ok else MAX_FAILED_LINES
        if allowance.left == 0:
            allowance.suppressed += 1
            return
        allowance.left -= 1
        if allowance.suppressed:
            more["suppressed"], allowance.suppressed = allowance.suppressed, 0
        if caller is not None:
            more["caller"] = caller
        log.info("call", method=path.lstrip("/"), code=code, ms=round(seconds * 1000, 2), peer=host(peer()), **more)


def host(peer: str) -> str:
    """The address in a peer as gRPC writes it, without the port: a port is new with each connection.

    `ipv4:127.0.0.1:4711` and `ipv6:%5B::1%5D:4711` are such; any other, as a Unix socket, stays as it is.
    """
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    return unquote(rest).rpartition(":")[0].strip("[]")
