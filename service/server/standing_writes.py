"""Writes that stand: gRPC's `write` returns once the caller's HTTP/2 window had room, which may be never.

The server cannot end such a call. It is told so here once its write has stood for long, and stops counting it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable

import structlog

UNREAD_AFTER = 30.0  # seconds
CHECKS = 30  # of the writes' durations within that time

log = structlog.get_logger()


class StandingWrites:
    """The writes of all streams of a server that are under way.

    Args:
        unread_after: seconds after which a write is taken for one that nobody reads.
    """

    def __init__(self, unread_after: float) -> None:
        self.unread_after = unread_after
        self.unread = 0
        """The number of streams whose write has stood for that long, and still does."""
        self._since: dict[Hashable, tuple[float, Callable[[], None], str]] = {}  # oldest first
        self._unread: set[Hashable] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def write(self, stream: Hashable, caller: str, write: Awaitable[None], unread: Callable[[], None]) -> bool:
        """Await a write; returns False where it stood for too long before it came to an end.

        Args:
            stream: whose write it is; it has one at a time.
            caller: of the stream, for the log.
            write: the write.
            unread: called once it has stood for too long.
        """
        self._since[stream] = time.monotonic(), unread, caller
        if self._timer is None:
            self._arm()
        try:
            await write
        finally:
            self._since.pop(stream, None)
            was_unread = stream in self._unread
            if was_unread:
                self._unread.discard(stream)
                self.unread -= 1
        return not was_unread

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.unread_after / CHECKS, self._check)

    def _check(self) -> None:
        self._timer = None
        limit = time.monotonic() - self.unread_after
        callers = []
        for stream, (since, unread, caller) in list(self._since.items()):
            if since > limit:
                break
            del self._since[stream]
            self._unread.add(stream)
            self.unread += 1
            callers.append(caller)
            unread()
        if callers:
            names = sorted(set(callers))
            log.warning("answers are not read", streams=len(callers), seconds=self.unread_after, callers=names[:5])
        if self._since:
            self._arm()
