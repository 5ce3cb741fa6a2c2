"""A bound on bytes in memory that many tasks share."""

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
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """Have `size` bytes back, and let those go on who now fit."""
        self._used -= size
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
