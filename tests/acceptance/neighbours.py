"""Bad neighbours: a server under attack, honest callers beside it, and what became of both.

The attacker is the test's own process; the server and the honest callers, one of Track, one of BatchSend and one that
watches and checks health, are processes of their own. A callers file is in force.
"""

import asyncio
import hashlib
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from service.sandbox.server import Sandbox
from tests.acceptance.honest_callers import Honest, Seen
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import until

Result = TypeVar("Result")

HONEST = "a-token-of-an-honest-caller"
BAD = "a-token-of-a-bad-neighbour"
BAD_ONES = [f"{BAD}-{number}" for number in range(40)]
"""Tokens of further bad neighbours, each a caller of its own."""
OPERATOR = "a-token-of-an-operator"
CALLERS = "\n".join(
    f'[callers.{name}]\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\nmethods = {methods}'
    for name, token, methods in (
        ("honest", HONEST, '["EventService"]'),
        ("bad", BAD, '["EventService", "DeadLetterService"]'),
        *((f"bad-{number}", token, '["EventService"]') for number, token in enumerate(BAD_ONES)),
        ("operator", OPERATOR, '["DeadLetterService"]'),
    )
)
EVENT_SERVICE = "/pointillist_destination.v1.EventService"
DEAD_LETTER_SERVICE = "/pointillist_destination.v1.DeadLetterService"
HEALTH = "/grpc.health.v1.Health"
MEMORY_INTERVAL = 0.02  # seconds between two looks at the server's memory


@dataclass
class Street:
    """The server, those beside it, and what is measured of them."""

    server: ServerProcess
    sandbox: Sandbox
    peak: int = 0
    """MiB of resident memory, the most that was seen."""
    seen: dict[str, Seen] = field(default_factory=dict)
    """What the honest callers saw, by kind."""
    attacks: int = 0
    """So far; message_ids of honest callers bear the number."""
    owed: set[str] = field(default_factory=set)
    """What honest callers were told was accepted, over all attacks of a soak."""
    stopped_in: float = 0.0
    """Seconds from SIGTERM to the end of the process."""

    @property
    def address(self) -> str:
        """Of the gRPC port."""
        return self.server.address

    def show(self) -> None:
        """Print one line for people; pytest -s shows it."""
        parts = [f"peak {self.peak} MiB", f"log {self.server.log_bytes} B", f"SIGTERM {self.stopped_in:.1f} s"]
        for kind, seen in self.seen.items():
            p50, p99 = seen.percentile(0.5), seen.percentile(0.99)
            parts.append(f"{kind} p50 {p50:.0f} p99 {p99:.0f} ms {seen.codes} missed {seen.missed_in_a_row}")
        print("; ".join(parts))  # noqa: T201

    async def beside(self, attack: Callable[[], Awaitable[Result]], kinds: str = "track batch health") -> Result:
        """Have honest callers work from before an attack until after it; returns what it returns."""
        self.attacks += 1
        callers = {
            kind: await Honest.start(kind, self.address, f"{kind}-{self.attacks}", None if kind == "health" else HONEST)
            for kind in kinds.split()
        }
        watching = asyncio.create_task(self._watch_memory())
        try:
            await self._until_calls_come(kinds)
            result = await attack()
            for kind, caller in callers.items():
                self.seen[kind] = await caller.stop()
            return result
        finally:
            watching.cancel()
            for caller in callers.values():
                await caller.kill()

    async def stop(self) -> None:
        """Send SIGTERM, and measure how long the process takes to end."""
        started = time.monotonic()
        await self.server.stop()
        self.stopped_in = time.monotonic() - started

    async def until_delivered(self) -> None:
        """Wait until everything is delivered that honest callers were told was accepted.

        Raises:
            TimeoutError: something was lost.
        """
        accepted = self.accepted()
        await until(lambda: accepted <= self.delivered())

    def accepted(self) -> set[str]:
        """The message_ids that honest callers of the latest attack were told were accepted."""
        return {one for seen in self.seen.values() for one in seen.accepted}

    def delivered(self) -> set[str]:
        """The message_ids that were delivered."""
        return {record.message_id for record in self.sandbox.records}

    async def _until_calls_come(self, kinds: str) -> None:
        methods = [method for kind, method in (("track", "Track"), ("batch", "BatchSend")) if kind in kinds]

        def come(metrics: dict[str, float]) -> bool:
            sent = {name: value for name, value in metrics.items() if name.startswith("grpc_server_msg_sent_total")}
            return all(any(value for name, value in sent.items() if method in name) for method in methods)

        await self.server.until_metrics(come)

    async def _watch_memory(self) -> None:
        while True:
            self.peak = max(self.peak, self.server.memory() // 1024)
            await asyncio.sleep(MEMORY_INTERVAL)


@asynccontextmanager
async def street(folder: Path, **settings: str) -> AsyncIterator[Street]:
    """Run a server with a callers file and a health port."""
    callers = folder / "callers.toml"
    callers.write_text(CALLERS, encoding="utf-8")
    allow_connections()
    async with running_sandbox() as sandbox:
        given = {
            "callers_file": str(callers),
            "health_listen": "127.0.0.1:0",
            "shutdown_delay": "0s",
            "shutdown_grace": "2s",
        }
        server = await ServerProcess.spawn(settings_for(folder / "outbox.db", sandbox, **(given | settings)))
        try:
            await server.serving()
            yield Street(server, sandbox)
        finally:
            await server.kill()


def allow_connections() -> None:
    """Raise this process' soft limit of open descriptors, for attacks over many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
