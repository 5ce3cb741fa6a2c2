"""Waiting for a condition, with a deadline."""

import asyncio
import time
from collections.abc import Callable

DEADLINE = 60.0  # seconds for anything that has to happen at all, on a busy machine too
INTERVAL = 0.002  # seconds between two looks


async def until(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it did not, within `deadline` seconds.
    """
    async with asyncio.timeout(deadline):
        while not condition():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(INTERVAL)


async def turns(count: int = 20) -> None:
    """Let the event loop turn a few times, so that whatever could happen at once has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


def until_blocking(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until a condition holds, where there is no event loop.

    Raises:
        TimeoutError: it did not, within `deadline` seconds.
    """
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(INTERVAL)
