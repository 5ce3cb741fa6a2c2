"""A SqliteOutbox for a test: opened with what hardly ever matters, and closed whatever happens."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from service.clock import Clock
from service.outbox.base import DeadLetterFilter, Entry, Refusal, Stored
from service.outbox.room import Bounds
from service.outbox.sqlite import SqliteOutbox

WINDOW = 86_400.0  # seconds
RETRY_MAX_DELAY = 300.0  # seconds
ALL = DeadLetterFilter()
REFUSAL = Refusal("400", 400, '{"reason":"no"}')


def open_outbox(
    path: Path,
    clock: Clock,
    *,
    window_ids: int = 10_000_000,
    bounds: Bounds | None = None,
    disk_free: Callable[[Path], int] = lambda _: 2**60,
) -> SqliteOutbox:
    """Open an outbox on the running event loop."""
    return SqliteOutbox(
        path,
        clock=clock,
        window=WINDOW,
        window_ids=window_ids,
        retry_max_delay=RETRY_MAX_DELAY,
        bounds=bounds or Bounds(),
        disk_free=disk_free,
    )


@asynccontextmanager
async def opened(
    path: Path,
    clock: Clock,
    *,
    window_ids: int = 10_000_000,
    bounds: Bounds | None = None,
    disk_free: Callable[[Path], int] = lambda _: 2**60,
) -> AsyncIterator[SqliteOutbox]:
    """Open an outbox, and close it in the end."""
    outbox = open_outbox(path, clock, window_ids=window_ids, bounds=bounds, disk_free=disk_free)
    try:
        yield outbox
    finally:
        await outbox.close()


async def bury(outbox: SqliteOutbox, entries: list[Entry], refusal: Refusal = REFUSAL) -> list[Stored]:
    """Have events accepted and given up."""
    await outbox.put(entries)
    buried = await outbox.fetch(len(entries))
    for stored in buried:
        outbox.term(stored, refusal)
    await outbox.flush()
    return buried
