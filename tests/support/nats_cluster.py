"""Real nats-servers that are killed and started again: a single one, or a cluster."""

import asyncio
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import nats
import orjson
from nats.aio.client import Client
from nats.errors import Error

from service.outbox.jetstream.streams import CONSUMER, SECOND, Plan
from tests.support.nats import NatsServer

HEALTHY_DEADLINE = 90.0  # seconds until a cluster is formed and in sync, on a busy machine too
POLL_INTERVAL = 0.1  # seconds
API_TIMEOUT = 2.0  # seconds for a response of JetStream's API; while a stream has no leader, none comes


@dataclass(frozen=True, slots=True)
class NatsNodes:
    """A single server, or a cluster."""

    nodes: Sequence[NatsServer]

    @property
    def url(self) -> str:
        """The URL for clients, in the form of POINTILLIST_OUTBOX_URL."""
        return "nats://" + ",".join(node.url.removeprefix("nats://") for node in self.nodes)

    async def healthy(self) -> None:
        """Return once each server reports that it is healthy and in sync with the others.

        Raises:
            TimeoutError: one did not in time.
        """
        async with asyncio.timeout(HEALTHY_DEADLINE), aiohttp.ClientSession() as client:
            for node in self.nodes:
                while not await _is_healthy(client, node):  # noqa: ASYNC110  the state of another process
                    await asyncio.sleep(POLL_INTERVAL)

    async def kill(self, node: NatsServer) -> None:
        """End a server with SIGKILL."""
        await asyncio.to_thread(node.stop, signal.SIGKILL)

    async def start(self, node: NatsServer) -> None:
        """Start a server again, on its old port, and wait until all are healthy."""
        await asyncio.to_thread(node.start)
        await self.healthy()


async def _is_healthy(client: aiohttp.ClientSession, node: NatsServer) -> bool:
    try:
        async with client.get(f"{node.monitoring_url}/healthz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def nats_nodes(folder: Path, count: int) -> AsyncIterator[NatsNodes]:
    """Run `count` servers until they are healthy; more than one form a cluster."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # The ports stay reserved while a server is down.
        ports = [[stack.enter_context(_HeldPort()).number for _ in range(3)] for _ in range(count)]
        routes = ", ".join(f'"nats://127.0.0.1:{route}"' for route, _, _ in ports)
        nodes: list[NatsServer] = []
        for number, (route, port, monitoring_port) in enumerate(ports):
            cluster = f'cluster {{ name: "cluster", listen: "127.0.0.1:{route}", routes: [{routes}] }}'
            more = f'server_name: "node-{number}"\n{cluster if count > 1 else ""}'
            nodes.append(NatsServer(folder / f"node-{number}", more, port=port, monitoring_port=monitoring_port))
            stack.callback(nodes[-1].stop, signal.SIGKILL)
            await asyncio.to_thread(nodes[-1].start)
        running = NatsNodes(nodes)
        await running.healthy()
        yield running


class _HeldPort:
    """A reserved free port, which can still be bound with SO_REUSEADDR, as nats-server does.

    The servers of a cluster must know each other's ports before any of them runs.
    """

    def __enter__(self) -> Self:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Streams:
    """The streams of an outbox, accessed without the service."""

    def __init__(self, client: Client, plan: Plan) -> None:
        self._client = client
        self.plan = plan

    async def make(self, ack_wait: float) -> None:
        """Create them before any replica does, with a consumer that waits `ack_wait` seconds for a dead relay."""
        plan = self.plan
        for config in (plan.events_config(), plan.letters_config()):
            await self._call_api(f"STREAM.CREATE.{config['name']}", config)
        consumer = plan.consumer_config() | {"ack_wait": round(ack_wait * SECOND)}
        request = {"stream_name": plan.events_stream, "config": consumer}
        await self._call_api(f"CONSUMER.DURABLE.CREATE.{plan.events_stream}.{CONSUMER}", request)

    async def waiting(self) -> int:
        """Return the number of pending events, which replicas themselves know a second later.

        Raises:
            Error: JetStream does not answer now.
        """
        answer = await self._call_api(f"STREAM.INFO.{self.plan.events_stream}")
        return int(answer["state"]["messages"])

    async def emptied(self, deadline: float) -> None:
        """Return once no event is pending.

        Raises:
            TimeoutError: some were, after `deadline` seconds.
        """
        async with asyncio.timeout(deadline):
            while not await self._is_empty():  # noqa: ASYNC110  the count of another process
                await asyncio.sleep(POLL_INTERVAL)

    async def _is_empty(self) -> bool:
        try:
            return await self.waiting() == 0
        except Error:
            return False

    async def _call_api(self, method: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        data = b"" if request is None else orjson.dumps(request)
        received = await self._client.request(f"$JS.API.{method}", data, timeout=API_TIMEOUT)
        answer: dict[str, Any] = orjson.loads(received.data)
        assert "error" not in answer, answer
        return answer


@asynccontextmanager
async def streams_of(url: str, plan: Plan) -> AsyncIterator[Streams]:
    """Access an outbox's streams over a connection that is established again by itself."""
    servers = ["nats://" + host for host in url.removeprefix("nats://").split(",")]
    client = await nats.connect(servers, max_reconnect_attempts=-1, reconnect_time_wait=1, error_cb=_ignore)
    try:
        yield Streams(client, plan)
    finally:
        await client.close()


async def _ignore(error: Exception) -> None:
    """Ignore the errors of a server that a test has stopped."""
