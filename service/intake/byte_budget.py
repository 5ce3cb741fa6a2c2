"""A bound on bytes in memory that many tasks share, and the part of it that one stream holds."""

import asyncio
from collections import deque


class ByteBudget:
    """Hands out bytes, first come first served; who wants more than is left waits.

    A single wish above the whole budget is granted when nothing else is out, so that nothing waits for ever.
    """

    def __init__(self, most: int) -> None:
        """Make a budget of `most` bytes."""
        self._most = most
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes that are out."""
        return self._used

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for bytes."""
        return len(self._waiting)

    def take_now(self, size: int) -> bool:
        """Take `size` bytes if there is no need to wait for them."""
        if self._waiting or not self._fits(size):
            return False
        self._used += size
        return True

    async def take(self, size: int) -> None:
        """Return once `size` bytes may be used; `give_back` them."""
        if self.take_now(size):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._used -= size
            self._grant()
            raise

    def overdraw(self, size: int) -> None:
        """Take `size` bytes that are in use already, whether they are left or not; `give_back` them."""
        self._used += size

    def give_back(self, size: int) -> None:
        """Have `size` bytes back, and let those go on who now fit."""
        self._used -= size
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            size, future = self._waiting[0]
            if not future.cancelled():
                if not self._fits(size):
                    return
                self._used += size
                future.set_result(None)
            self._waiting.popleft()

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._most


class OwnerBudget:
    """The part that all streams of one caller may hold together."""

    def __init__(self, requests_most: int, unwritten_most: int) -> None:
        """Make it.

        Args:
            requests_most: bytes of requests.
            unwritten_most: bytes of answers that wait to be written, after which no request is read or judged.
        """
        self.requests = ByteBudget(requests_most)
        self.unwritten = ByteBudget(unwritten_most)
        self.streams = 0


class StreamBudget:
    """The part of a budget that one stream holds: requests until they are handled, answers until they are written.

    A caller that does not read its answers is itself read no further once those of a stream have come to
    `unwritten_most` bytes, or those of all its streams to their owner's bound, so that it leaves enough to the others.
    """

    def __init__(self, shared: ByteBudget, unwritten_most: int, owner: OwnerBudget) -> None:
        """Make it, with nothing held.

        Args:
            shared: the budget of all streams.
            unwritten_most: bytes of answers that wait to be written, after which no request is read.
            owner: the budget of its caller.
        """
        self._shared = shared
        self._owner = owner
        self._unwritten = ByteBudget(unwritten_most)
        self._requests = 0
        self._answers = 0
        self._is_shared = True
        self._is_closed = False

    def may_go_on(self) -> bool:
        """Return True if a request may be read, or judged, at once."""
        return self._unwritten.take_now(0) and self._owner.unwritten.take_now(0)

    async def until_may_go_on(self) -> None:
        """Return once enough answers are written."""
        await self._unwritten.take(0)
        await self._owner.unwritten.take(0)

    def hold_now(self, size: int) -> bool:
        """Hold a request of `size` bytes if there is no need to wait."""
        if not self._owner.requests.take_now(size):
            return False
        if not self._shared.take_now(size):
            self._owner.requests.give_back(size)
            return False
        self._hold(size)
        return True

    async def hold(self, size: int) -> None:
        """Return once a request of `size` bytes may be held; `let_go` of it."""
        await self._owner.requests.take(size)
        try:
            await self._shared.take(size)
        except BaseException:
            self._owner.requests.give_back(size)
            raise
        self._hold(size)

    def let_go(self, size: int) -> None:
        """Hold a request no more."""
        if not self._is_closed:
            self._requests -= size
            self._owner.requests.give_back(size)
            self._give_back(size)

    def answer(self, size: int) -> None:
        """Hold an answer of `size` bytes, until it is `written`."""
        if not self._is_closed:
            self._answers += size
            self._unwritten.overdraw(size)
            self._owner.unwritten.overdraw(size)
            if self._is_shared:
                self._shared.overdraw(size)

    def written(self, size: int) -> None:
        """Hold an answer no more."""
        if not self._is_closed:
            self._answers -= size
            self._unwritten.give_back(size)
            self._owner.unwritten.give_back(size)
            self._give_back(size)

    def leave_shared(self) -> None:
        """Count no more in what others share, and on in what the caller may hold: its answers are not read."""
        if self._is_shared:
            self._is_shared = False
            self._shared.give_back(self._requests + self._answers)

    def close(self) -> None:
        """Hold nothing any more, now or later: the stream has ended."""
        self._is_closed = True
        self._give_back(self._requests + self._answers)
        self._owner.requests.give_back(self._requests)
        self._owner.unwritten.give_back(self._answers)
        self._requests = self._answers = 0

    def _hold(self, size: int) -> None:
        if self._is_closed:
            self._shared.give_back(size)
            self._owner.requests.give_back(size)
        else:
            self._requests += size

    def _give_back(self, size: int) -> None:
        if self._is_shared:
            self._shared.give_back(size)
