"""Real server processes: started, killed with SIGKILL, started again on the same outbox."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
from prometheus_client.parser import text_string_to_metric_families

from pointillist_destination.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from service.sandbox.server import Sandbox

PROJECT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "service", "serve")
TOKEN = "acceptance-token"
START_DEADLINE = 30.0  # seconds from the start of a process to its `serving` line
STOP_DEADLINE = 30.0  # seconds from SIGTERM to the end of a process
MAX_LOG_LINE = 1024 * 1024  # bytes; a traceback is one line
LOOK_INTERVAL = 0.02  # seconds between two looks at the metrics
LOG_LINES_KEPT = 200  # of a process, for what is said when it fails
PAGE_SIZE = 1000  # dead letters a page


def settings_for(outbox: Path | str, sandbox: Sandbox, **settings: str) -> dict[str, str]:
    """The variables that `serve` gets: ports that are free, and retries that do not take a test's whole time.

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
    """Where events are taken in, once it serves."""
    metrics_url: str = ""
    is_killed: bool = False
    """Whether it was sent SIGKILL; calls may fail from then on."""
    reading: asyncio.Task[None] | None = None
    """Reads the log on, so that the process never waits for somebody to read it."""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES_KEPT))
    """The latest lines of its log."""

    @classmethod
    async def spawn(
        cls, settings: Mapping[str, str], environment: Mapping[str, str] | None = None, role: str = "all"
    ) -> "ServerProcess":
        """Start the process; it does not serve yet.

        Args:
            settings: all POINTILLIST_ variables; those of the test's own environment are not handed on.
            environment: further variables.
            role: what it does of the two things.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("POINTILLIST_")}
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            "--role",
            role,
            cwd=PROJECT,
            env=inherited | dict(settings) | dict(environment or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LOG_LINE,
        )
        return cls(process)

    @classmethod
    async def start(
        cls, settings: Mapping[str, str], environment: Mapping[str, str] | None = None, role: str = "all"
    ) -> "ServerProcess":
        """Start the process and wait until it serves.

        Raises:
            AssertionError: it ended before, with the end of its log.
        """
        server = await cls.spawn(settings, environment, role)
        await server.serving()
        return server

    async def serving(self) -> None:
        """Wait for the `serving` line, which has the port that was really bound; from then on the log is read along."""
        async with asyncio.timeout(START_DEADLINE):
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
            try:
                parsed = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # a traceback, or a library that writes to standard error by itself
            if isinstance(parsed, dict):
                yield parsed

    async def _read_on(self) -> None:
        async for _ in self._lines():
            pass

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.returncode is None

    async def kill(self) -> None:
        """End it with SIGKILL, as the kernel does when memory is short; nothing of it runs after that."""
        if self.is_running:
            self.is_killed = True
            self.process.kill()
        await self._ended()

    async def stop(self) -> None:
        """End it with SIGTERM.

        Raises:
            AssertionError: it did not end well, with the end of its log.
        """
        if self.is_running:
            self.process.terminate()
        async with asyncio.timeout(STOP_DEADLINE):
            await self._ended()
        assert self.process.returncode == 0, "\n".join(self.log)

    async def _ended(self) -> None:
        await self.process.wait()
        if self.reading is not None:
            await self.reading

    # -- what it says of itself

    async def metrics(self) -> dict[str, float]:
        """Every sample that has no label by its name, and those with one as `name{value}`; names without our prefix."""
        async with aiohttp.ClientSession() as client, client.get(self.metrics_url) as response:
            text = await response.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("pointillist_destination_")
                label = ",".join(sample.labels.values())
                found[f"{name}{{{label}}}" if label else name] = sample.value
        return found

    async def until_workers(self, count: int) -> None:
        """Wait until so many relay workers are there."""
        async with asyncio.timeout(START_DEADLINE):
            while (await self.metrics())["relay_workers"] < count:  # noqa: ASYNC110  another process counts
                await asyncio.sleep(LOOK_INTERVAL)

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
