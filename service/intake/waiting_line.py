"""A line of waiting tasks, first come, first served; one that comes back has the place of its first arrival."""

import asyncio
import itertools
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager


class WaitingLine:
    """Tasks that wait, by the number that each was given on arrival."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[int] = []  # rising
        self._changed: dict[int, asyncio.Event] = {}

    def arrive(self) -> int:
        """Return the number of an arrival; who arrives later has a higher one."""
        return next(self._numbers)

    def is_empty(self) -> bool:
        """Return True if nobody waits."""
        return not self._waiting

    def is_first(self, number: int) -> bool:
        """Return True if this number, which waits, is the lowest that does."""
        return self._waiting[0] == number

    @contextmanager
    def place(self, number: int) -> Iterator[None]:
        """Hold the place of a number within the body."""
        insort(self._waiting, number)
        self._changed[number] = asyncio.Event()
        try:
            yield
        finally:
            self._waiting.remove(number)
            del self._changed[number]
            if self._waiting:
                self._changed[self._waiting[0]].set()

    async def first(self, number: int) -> None:
        """Return once a number, which must hold a place, is the first."""
        changed = self._changed[number]
        while not self.is_first(number):
            changed.clear()
            await changed.wait()
