"""Outboxes for tests, with defaults for everything that rarely matters; closed in any case."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from service.clock import Clock
from service.config.address import NatsServers
from service.outbox.base import DeadLetterFilter, Entry, OpenOutbox, Pick, Refusal, Stored
from service.outbox.capacity import Bounds
from service.outbox.jetstream.connection import NatsAccess
from service.outbox.jetstream.outbox import JetStreamOutbox
from service.outbox.jetstream.streams import Plan
from service.outbox.sqlite.outbox import SqliteOutbox
from tests.support.waiting import DEADLINE, INTERVAL

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
    """Open an outbox, and close it at the end."""
    outbox = open_outbox(path, clock, window_ids=window_ids, bounds=bounds, disk_free=disk_free)
    try:
        yield outbox
    finally:
        await outbox.close()


def refuse_writes(outbox: SqliteOutbox, *, refuse: bool) -> None:
    """Have SQLite itself refuse every write, as it does on a disk that became read-only."""
    outbox._file._connection.execute(f"PRAGMA query_only = {int(refuse)}")


def sqlite_error(code: int) -> sqlite3.OperationalError:
    """Make an error of SQLite with a code."""
    error = sqlite3.OperationalError("words of SQLite")
    error.sqlite_errorcode = code
    return error


PATIENCE = 20.0  # seconds in which an outbox on NATS must be reachable


@asynccontextmanager
async def opened_on_nats(
    url: str,
    plan: Plan,
    clock: Clock,
    *,
    settled: Callable[[str, Refusal | None], None] = lambda *_: None,
) -> AsyncIterator[JetStreamOutbox]:
    """Open an outbox on JetStream, and close it at the end."""
    access = NatsAccess(NatsServers.parse(url))
    outbox = JetStreamOutbox(access, plan, clock=clock, retry_max_delay=RETRY_MAX_DELAY, settled=settled)
    try:
        await outbox.start(PATIENCE)
        yield outbox
    finally:
        await outbox.close()


@dataclass(frozen=True)
class Backend:
    """One kind of outbox in a place of its own, and its promises beyond those of every outbox."""

    open: Callable[[Clock], AbstractAsyncContextManager[OpenOutbox]]
    """Open it, with its content from when it was closed."""
    goes_by_the_clock: bool
    """True if due times are by the given clock; otherwise they are by NATS' own."""
    remembers_tries: bool
    """True if attempts and the first attempt's time survive the process."""
    counts_payloads: bool
    """True if its bytes are those of the events only."""


def on_sqlite(path: Path) -> Backend:
    """Return the outbox in a file."""
    return Backend(
        lambda clock: opened(path, clock), goes_by_the_clock=True, remembers_tries=True, counts_payloads=True
    )


def on_jetstream(url: str, prefix: str) -> Backend:
    """Return the outbox on a NATS server."""
    return Backend(
        lambda clock: opened_on_nats(url, Plan(prefix), clock),
        goes_by_the_clock=False,
        remembers_tries=False,
        counts_payloads=False,
    )


async def take(outbox: OpenOutbox, count: int, pick: Pick = Pick.READY) -> list[Stored]:
    """Fetch `count` events; on JetStream they can be fetched a moment after they were put.

    Raises:
        TimeoutError: there are fewer.
    """
    taken = await outbox.fetch(count, pick)
    async with asyncio.timeout(DEADLINE):
        while len(taken) < count:
            await asyncio.sleep(INTERVAL)
            taken += await outbox.fetch(count - len(taken), pick)
    return taken


async def bury(outbox: OpenOutbox, entries: list[Entry], refusal: Refusal = REFUSAL) -> list[Stored]:
    """Store events and turn them into dead letters."""
    await outbox.put(entries)
    buried = await take(outbox, len(entries))
    for stored in buried:
        outbox.term(stored, refusal)
    await outbox.flush()
    return buried


def refusal(outbox: OpenOutbox) -> str:
    """Return the reason for which a put would be refused now; empty if it would not be."""
    error = outbox.full()
    return "" if error is None else error.reason
