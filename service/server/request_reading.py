"""Requests that are being read: how many at a time, and for how long.

gRPC keeps what has come of a message in memory until it is whole, up to 4 MiB, from the moment that it is asked for the
message. It is asked for so many at a time only. Waiting calls take turns by caller.
"""

import asyncio
import time
from collections import Counter, deque
from typing import TypeAlias

import grpc

from service.server.status import slow_request, too_many_calls, unparsable

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

END_OF_STREAM: object = grpc.aio.EOF
CHECKS = 4  # of the reads' durations, within the shorter of the two bounds


class RequestReading:
    """The requests of some methods that are being read.

    Args:
        places: requests at a time.
        share: of them for one caller; a caller without a name has no share.
        longest: seconds in which a request must have come.
        contended: seconds in which it must have come while others wait.
    """

    def __init__(self, places: int, share: int, longest: float = 30.0, contended: float = 5.0) -> None:
        self._places = places
        self._share = share
        self._longest = longest
        self._contended = contended
        self._reading: dict[asyncio.Task[object], float] = {}  # the tasks that read, oldest first, and since when
        self._late: set[asyncio.Task[object]] = set()
        self._taken = 0
        self._taken_by: Counter[str] = Counter()
        self._waiting: dict[
            str, deque[tuple[asyncio.Future[None], float]]
        ] = {}  # by caller; whose turn it is comes first
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Context, caller: str | None, type_name: str, *, may_end: bool = False) -> bytes:
        """Read a request; where the call `may_end` instead, END_OF_STREAM.

        Raises:
            StatusError: INVALID_ARGUMENT, where the call ended without a whole message, or it is above 4 MiB;
                UNAVAILABLE, where it does not come, or there is no place to read it.
        """
        owner = caller or ""
        if not self._take_now(owner):
            await self.take(owner)
        task = asyncio.current_task()
        assert task is not None
        self._reading[task] = time.monotonic()
        if self._timer is None:
            self._arm()
        try:
            request = await context.read()
        except asyncio.CancelledError:
            if task in self._late:
                task.uncancel()
                raise slow_request(self._longest) from None
            raise
        finally:
            del self._reading[task]
            self._late.discard(task)
            self.give_back(owner)
        if request is END_OF_STREAM and not may_end:
            raise unparsable(type_name)
        return request

    async def take(self, owner: str) -> None:
        """Take a place to read a request, in turn; `give_back` it.

        Raises:
            StatusError: UNAVAILABLE, where there was none for long.
        """
        if self._take_now(owner):
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._waiting.get(owner)
        if line is None:
            line = self._waiting[owner] = deque()
        line.append((place, time.monotonic()))
        if self._timer is None:
            self._arm()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was given in the same turn of the loop
                self.give_back(owner)
            raise

    def give_back(self, owner: str) -> None:
        """Give a place back."""
        self._taken -= 1
        if owner:
            self._taken_by[owner] -= 1
            if not self._taken_by[owner]:
                del self._taken_by[owner]
        if self._waiting:
            self._hand_on()

    def _take_now(self, owner: str) -> bool:
        if self._taken >= self._places or owner in self._waiting:
            return False
        if owner:
            if self._taken_by[owner] >= self._share:
                return False
            self._taken_by[owner] += 1
        self._taken += 1
        return True

    def _hand_on(self) -> None:
        """Give free places to those who wait: one caller after the other, each of them in order."""
        for owner in list(self._waiting):
            if self._taken >= self._places:
                return
            if owner and self._taken_by[owner] >= self._share:
                continue
            line = self._waiting.pop(owner)
            while line:
                place, _ = line.popleft()
                if not place.done():  # one that is cancelled is about to leave
                    self._taken += 1
                    if owner:
                        self._taken_by[owner] += 1
                    place.set_result(None)
                    break
            if line:
                self._waiting[owner] = line  # behind the others

    def _arm(self) -> None:
        interval = min(self._longest, self._contended) / CHECKS
        self._timer = asyncio.get_running_loop().call_later(interval, self._check)

    def _check(self) -> None:
        """End the reads that take too long: all of them after `longest`, and for those who wait after `contended`."""
        self._timer = None
        now = time.monotonic()
        self._end_waiting(now - self._longest)
        needed = sum(map(len, self._waiting.values()))
        for task, since in self._reading.items():
            if now - since < (self._contended if needed > 0 else self._longest):
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
            needed -= 1
        if self._reading or self._waiting:
            self._arm()

    def _end_waiting(self, limit: float) -> None:
        """Refuse those who have waited for a place since before `limit`."""
        for owner, line in list(self._waiting.items()):
            while line and (line[0][1] < limit or line[0][0].done()):
                place, _ = line.popleft()
                if not place.done():
                    place.set_exception(too_many_calls())
            if not line:
                del self._waiting[owner]
