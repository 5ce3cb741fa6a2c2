"""A relay at work between a real outbox and a scripted Pointillist.

With workers the script answers over HTTP, as they are processes of their own; the clock that is moved by hand is the
relay's alone then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias
from urllib.parse import unquote

from aiohttp import web

from service.clock import Clock, SystemClock
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import load_mapping
from service.outbox.base import OpenOutbox
from service.outbox.deliveries import DeliveryWaiters
from service.pointillist.answer import Answer
from service.pointillist.client import Pointillist
from service.relay.flow import Flow
from service.relay.local_sender import LocalSender
from service.relay.relay import Relay
from service.relay.worker_pool import WorkerPool
from service.relay.worker_protocol import SetUp
from service.telemetry.metrics import Metrics
from tests.support.outboxes import RETRY_MAX_DELAY, Backend, on_sqlite
from tests.support.waiting import turns, until

TAKEN = Answer(200)
MAX_AGE = 7 * 86400.0  # seconds
GRACE = 1.0  # seconds
REQUEST_TIMEOUT = 30.0  # seconds, real ones; longer than any test waits


@dataclass
class Script:
    """A Pointillist whose answers a test decides."""

    answer: Callable[[str], Answer] = lambda _: TAKEN
    """Gives the answer to an event, by its message_id."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """No answer comes while it is not set."""
    posts: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def post(self, body: bytes, message_id: str) -> Answer:
        """Answer by the script."""
        assert body.startswith(b'{"eventSource"')
        self.posts.append(message_id)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        answer = self.answer(message_id)
        if answer.status == 200:
            self.taken.append(message_id)
        return answer

    async def close(self) -> None:
        """Nothing is held."""


@asynccontextmanager
async def over_http(pointillist: Pointillist) -> AsyncIterator[str]:
    """Answer POSTs as a Pointillist in this process does; gives the address."""

    async def break_off(request: web.BaseRequest) -> NoReturn:
        if request.transport is not None:
            request.transport.abort()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("a future that nobody settles has ended")

    async def handle(request: web.BaseRequest) -> web.Response:
        answer = await pointillist.post(await request.read(), unquote(request.headers["Idempotency-Key"]))
        if answer.status is None:
            await break_off(request)
        headers = {} if answer.retry_after is None else {"Retry-After": str(round(answer.retry_after))}
        return web.Response(status=answer.status, text=answer.body_start, headers=headers)

    server = web.Server(handle, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/event"
    finally:
        await runner.cleanup()


def set_up_for(url: str) -> SetUp:
    """What workers are told at first."""
    return SetUp(
        client="pyreqwest",
        url=url,
        timeout=REQUEST_TIMEOUT,
        max_connections=64,
        ca_file=None,
        proxy=None,
        log_level="info",
        log_format="json",
    )


@dataclass
class Relaying:
    """A relay at work, and what it works on."""

    outbox: OpenOutbox
    relay: Relay
    sender: LocalSender | WorkerPool
    flow: Flow
    deliveries: DeliveryWaiters
    task: asyncio.Task[None]
    metrics: Metrics

    async def stop(self, grace: float = GRACE) -> None:
        """Stop the relay, and raise what ended it before."""
        await self.relay.stop(grace)
        await self.task


@asynccontextmanager
async def relaying(
    place: Path | Backend,
    pointillist: Pointillist,
    *,
    clock: Clock | None = None,
    mapping: Callable[[], Mapping] | None = None,
    ceiling: int = 64,
    max_age: float = MAX_AGE,
    dead_letters_most: int = 1_000_000,
    workers: int = 0,
) -> AsyncIterator[Relaying]:
    """Have a relay work; chance always draws zero, so that what is tried again is tried at once.

    Args:
        place: the outbox file, or the kind of outbox that a test was given.
        pointillist: what answers.
        clock: the system's, if none is given.
        mapping: the built-in one, if none is given.
        ceiling: events in flight at most.
        max_age: seconds.
        dead_letters_most: how many there may be.
        workers: how many processes carry the events; with 0 lanes in this one do.
    """
    clock = clock or SystemClock()
    built_in = load_mapping(None)
    mapping = mapping or (lambda: built_in)
    backend = on_sqlite(place) if isinstance(place, Path) else place
    async with AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(backend.open(clock))
        sender: LocalSender | WorkerPool
        if workers:
            set_up = set_up_for(await stack.enter_async_context(over_http(pointillist)))
            sender = WorkerPool(workers, set_up, mapping=mapping, token=lambda: "token", clock=clock)
        else:
            sender = LocalSender(mapping=mapping, pointillist=pointillist, clock=clock)
        flow = Flow(ceiling, lambda: 0.0, lambda _: None)
        deliveries, metrics = DeliveryWaiters(), Metrics()
        relay = Relay(
            outbox=outbox,
            sender=sender,
            flow=flow,
            deliveries=deliveries,
            metrics=metrics,
            clock=clock,
            random=lambda: 0.0,
            max_age=max_age,
            retry_max_delay=RETRY_MAX_DELAY,
            dead_letters_most=dead_letters_most,
        )
        running = Relaying(outbox, relay, sender, flow, deliveries, asyncio.create_task(relay.run()), metrics)
        await turns(2)
        await until(lambda: not isinstance(sender, WorkerPool) or sender.alive == workers)
        try:
            yield running
        finally:
            await running.stop()


Relays: TypeAlias = Callable[..., AbstractAsyncContextManager[Relaying]]
"""`relaying`, with some of its arguments given."""
