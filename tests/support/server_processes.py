"""`serve` as a real process: started, stopped, killed with SIGKILL, started again on the same outbox."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
from prometheus_client.parser import text_string_to_metric_families

from pointillist_destination.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from service.sandbox.server import Sandbox
from tests.support.paths import PROJECT
from tests.support.processes import command, environment
from tests.support.sandboxes import TOKEN
from tests.support.waiting import DEADLINE

MAX_LOG_LINE = 1024 * 1024  # bytes; a traceback is one line
METRICS_INTERVAL = 0.02  # seconds between two scrapes
LOG_LINES_KEPT = 200  # per process, shown when it fails
PAGE_SIZE = 1000  # dead letters per page
CALLER_GONE = "raised in core by servicer method"  # grpc's own error, of a status that a caller was no longer there for


def settings_for(outbox: Path | str, sandbox: Sandbox, **settings: str) -> dict[str, str]:
    """Variables for `serve`: free ports, and short delays between retries.

    Args:
        outbox: the outbox file, or the URL of NATS servers.
        sandbox: a running sandbox.
        settings: further settings, lower case and without the prefix; they win.
    """
    given = {
        "api_token": TOKEN,
        "api_url": sandbox.url,
        "grpc_listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "outbox_url": outbox if isinstance(outbox, str) else f"sqlite:///{outbox}",
        "disk_free_floor": "0",
        "retry_max_delay": "500ms",
        "request_timeout": "5s",
        "log_format": "json",
    }
    return {f"POINTILLIST_{name.upper()}": value for name, value in (given | settings).items()}


@dataclass
class ServerProcess:
    """One `serve`, from its start to its end."""

    process: asyncio.subprocess.Process
    address: str = ""
    """Of its gRPC server, once it serves."""
    metrics_url: str = ""
    health_address: str = ""
    """Of its server of health alone, where it has one."""
    is_killed: bool = False
    """True once it was sent SIGKILL; calls may fail from then on."""
    reading: asyncio.Task[None] | None = None
    """Reads the log, so that the process never blocks on a full pipe."""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES_KEPT))
    """The latest lines of its log."""
    log_bytes: int = 0
    """Of all that it has logged."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Every line of its log at the levels `error` and `critical`."""

    @classmethod
    async def spawn(
        cls, settings: Mapping[str, str], more: Mapping[str, str] | None = None, role: str = "all"
    ) -> "ServerProcess":
        """Start the process without waiting until it serves.

        Args:
            settings: all POINTILLIST_ variables; those of the test's own environment are not passed on.
            more: further variables.
            role: the value of --role.
        """
        process = await asyncio.create_subprocess_exec(
            *command("serve", "--role", role),
            cwd=PROJECT,
            env=environment({**settings, **(more or {})}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LOG_LINE,
        )
        return cls(process)

    @classmethod
    async def start(
        cls, settings: Mapping[str, str], more: Mapping[str, str] | None = None, role: str = "all"
    ) -> "ServerProcess":
        """Start the process and wait until it serves.

        Raises:
            AssertionError: it ended before, with the end of its log.
        """
        server = await cls.spawn(settings, more, role)
        await server.serving()
        return server

    async def serving(self) -> None:
        """Wait for the `serving` line, which has the bound port; keep reading the log from then on."""
        async with asyncio.timeout(DEADLINE):
            async for line in self._lines():
                if line.get("event") == "serving":
                    self.address = line["address"]
                    self.metrics_url = f"http://{line['metrics']}/metrics"
                    self.reading = asyncio.create_task(self._read_on())
                    return
        raise AssertionError("the server ended before it served:\n" + "\n".join(self.log))

    async def _lines(self) -> AsyncIterator[dict[str, Any]]:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log.append(line.decode(errors="replace").rstrip())
            self.log_bytes += len(line)
            try:
                parsed = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # a traceback, or a library that writes to standard error by itself
            if isinstance(parsed, dict):
                if parsed.get("level") in {"error", "critical"}:
                    self.errors.append(parsed)
                if parsed.get("event") == "health server listening":
                    self.health_address = parsed["address"]
                yield parsed

    async def _read_on(self) -> None:
        async for _ in self._lines():
            pass

    @property
    def is_running(self) -> bool:
        """True until the process has ended."""
        return self.process.returncode is None

    async def kill(self) -> None:
        """End it with SIGKILL, as the kernel does when memory is short; none of its code runs after that."""
        if self.is_running:
            self.is_killed = True
            self.process.kill()
        await self._ended()

    async def stop(self) -> None:
        """Send SIGTERM and wait for the end.

        Raises:
            AssertionError: its exit code is not 0, with the end of its log.
        """
        if self.is_running:
            self.process.terminate()
        await self.ended()

    async def ended(self) -> None:
        """Wait for the end of a process that was sent a signal.

        Raises:
            AssertionError: its exit code is not 0, with the end of its log.
        """
        async with asyncio.timeout(DEADLINE):
            await self._ended()
        assert self.process.returncode == 0, "\n".join(self.log)

    async def _ended(self) -> None:
        await self.process.wait()
        if self.reading is not None:
            await self.reading

    def memory(self, field: str = "VmRSS") -> int:
        """KiB of memory that it has now, or another field of its status in /proc: VmHWM is the most that it had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:"))

    # -- its metrics and its dead letters

    async def metrics(self) -> dict[str, float]:
        """Every sample without labels by its name, and those with labels as `name{value}`; names without our prefix."""
        async with aiohttp.ClientSession() as client, client.get(self.metrics_url) as response:
            text = await response.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("pointillist_destination_")
                label = ",".join(sample.labels.values())
                found[f"{name}{{{label}}}" if label else name] = sample.value
        return found

    async def until_metrics(
        self, condition: Callable[[dict[str, float]], object], deadline: float = DEADLINE
    ) -> dict[str, float]:
        """Wait until the metrics meet a condition; returns them.

        Raises:
            TimeoutError: they still do not, `deadline` seconds later.
        """
        async with asyncio.timeout(deadline):
            while not condition(found := await self.metrics()):  # noqa: ASYNC110  another process counts
                await asyncio.sleep(METRICS_INTERVAL)
        return found

    async def until_workers(self, count: int) -> None:
        """Wait until that many relay workers run."""
        await self.until_metrics(lambda metrics: metrics["relay_workers"] >= count)

    async def dead_letters(self) -> list[dead_letter_service_pb2.DeadLetter]:
        """Every dead letter, page by page."""
        letters: list[dead_letter_service_pb2.DeadLetter] = []
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
            token = ""
            while True:
                request = dead_letter_service_pb2.ListRequest(page_size=PAGE_SIZE, page_token=token)
                page = await stub.List(request)
                letters += page.dead_letters
                token = page.next_page_token
                if not token:
                    return letters


@asynccontextmanager
async def running_server(sandbox: Sandbox, folder: Path, **settings: str) -> AsyncIterator[ServerProcess]:
    """Run `serve` against a sandbox, with its outbox in the folder; kill it at the end if it still runs."""
    server = await ServerProcess.spawn(settings_for(folder / "outbox.db", sandbox, **settings))
    try:
        await server.serving()
        yield server
    finally:
        await server.kill()
