"""How relays that share one backlog on JetStream divide it: `python -m tests.acceptance.relay_shares`.

A backlog is put, relays are started one after another, and each is asked what it delivered and how much of a core that
took, by the kernel's count of its time, so that the sandbox and NATS, which take most of a small machine, do not enter.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.clock import SystemClock
from service.outbox.jetstream.streams import Plan
from service.sandbox.server import Behaviour
from tests.support.events import entries
from tests.support.nats import NatsServer, nats_running
from tests.support.nats_cluster import streams_of
from tests.support.outboxes import opened_on_nats
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for

DEADLINE = 120.0  # seconds until a backlog is gone
PUT_AT_ONCE = 500  # events
JOIN_DELAY = 0.1  # seconds that Pointillist takes for an answer until all relays are there
METRICS_INTERVAL = 0.05  # seconds between two looks at a relay's metrics
MEASURED = 10_000  # events for each relay that is measured
MEASURED_CONCURRENCY = 64  # of all relays together
MICROSECONDS = 1_000_000  # in a second


@dataclass(frozen=True, slots=True)
class Usage:
    """What a relay had done at some moment."""

    delivered: int
    seconds: float
    """Of a core."""
    limit: int
    """How many POSTs it allowed itself at a time."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a relay did of a backlog once all relays were there."""

    delivered: int
    seconds: float
    """Of a core."""

    @property
    def microseconds(self) -> float:
        """Of a core, for each event."""
        return self.seconds * MICROSECONDS / max(1, self.delivered)


@dataclass(frozen=True, slots=True)
class Drained:
    """A backlog that is gone."""

    shares: Sequence[Share]
    limits: Sequence[int]
    """How many POSTs each relay allowed itself at the end."""
    most_in_flight: int
    """POSTs at a time, of all together."""
    seconds: float
    """From the moment when all relays were there."""

    @property
    def rest(self) -> int:
        """The events that were left when all relays were there."""
        return sum(share.delivered for share in self.shares)


async def drain(
    nats: NatsServer, prefix: str, *, events: int, relays: int, concurrency: int, delay: float = 0.0
) -> Drained:
    """Put a backlog, start relays one after another, and wait until it is gone.

    Args:
        nats: keeps it.
        prefix: how the streams' names begin.
        events: how many there are.
        relays: how many; each further one is started once the one before it delivers.
        concurrency: POSTs at a time of all together.
        delay: seconds that Pointillist takes for an answer once all relays are there.
    """
    running: list[ServerProcess] = []
    async with (
        running_sandbox(Behaviour(delay=JOIN_DELAY)) as sandbox,
        streams_of(nats.url, Plan(prefix)) as streams,
        contextlib.AsyncExitStack() as stack,
    ):
        await _put(nats, prefix, events)
        settings = settings_for(
            nats.url,
            sandbox,
            nats_stream=prefix,
            max_concurrency=str(concurrency),
            relay_replicas=str(relays),
        )
        for _ in range(relays):
            running.append(await ServerProcess.start(settings, role="relay"))
            stack.push_async_callback(running[-1].kill)
            await _until_delivering(running[-1])
        before = [await _usage(relay) for relay in running]
        sandbox.behaviour, start = Behaviour(delay=delay), time.monotonic()
        await streams.emptied(DEADLINE)
        seconds = time.monotonic() - start
        after = [await _usage(relay) for relay in running]
        assert sandbox.taken >= events
        return Drained(
            [Share(b.delivered - a.delivered, b.seconds - a.seconds) for a, b in zip(before, after, strict=True)],
            [usage.limit for usage in after],
            sandbox.most_in_flight,
            seconds,
        )


async def _put(nats: NatsServer, prefix: str, events: int) -> None:
    async with opened_on_nats(nats.url, Plan(prefix), SystemClock()) as outbox:
        for first in range(0, events, PUT_AT_ONCE):
            await outbox.put(entries(min(PUT_AT_ONCE, events - first), first))


async def _until_delivering(relay: ServerProcess) -> None:
    async with asyncio.timeout(DEADLINE):
        while not (await _usage(relay)).delivered:  # noqa: ASYNC110  another process counts
            await asyncio.sleep(METRICS_INTERVAL)


async def _usage(relay: ServerProcess) -> Usage:
    metrics = await relay.metrics()
    # The fields of a process' stat are counted from behind its name, which may hold anything: utime and stime.
    stat = await asyncio.to_thread(Path(f"/proc/{relay.process.pid}/stat").read_text, encoding="utf-8")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return Usage(
        delivered=round(metrics["deliveries_total{2xx}"]),
        seconds=(int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
        limit=round(metrics["concurrency_limit"]),
    )


async def measure(folder: Path) -> Table:
    """What one, two and three relays do of a backlog that grows with them."""
    shown = Table("relays", "events", "by each", "CPU per event, µs", "events/s of all", title="Relays share a backlog")
    for relays in (1, 2, 3):
        with nats_running(folder / f"nats-{relays}") as nats:
            drained = await drain(
                nats, "SHARES", events=MEASURED * relays, relays=relays, concurrency=MEASURED_CONCURRENCY
            )
        shown.add_row(
            str(relays),
            str(drained.rest),
            " ".join(str(share.delivered) for share in drained.shares),
            " ".join(f"{share.microseconds:.0f}" for share in drained.shares),
            f"{drained.rest / drained.seconds:.0f}",
        )
    return shown


def main() -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory(prefix="shares-") as folder:
        Console(width=100).print(asyncio.run(measure(Path(folder))))


if __name__ == "__main__":
    main()
