"""A relay at work between a real outbox and a scripted Pointillist."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.answer import Answer
from service.clock import Clock, SystemClock
from service.deliveries import Deliveries
from service.flow import Flow
from service.mapping import Mapping
from service.mapping_file import load_mapping
from service.outbox.base import Outbox
from service.pointillist import Pointillist
from service.relay import Relay
from service.telemetry import Metrics
from tests.support.outboxes import RETRY_MAX_DELAY, Backend, on_sqlite
from tests.support.waiting import turns

TAKEN = Answer(200)
MAX_AGE = 7 * 86400.0  # seconds
GRACE = 1.0  # seconds


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


@dataclass
class Relaying:
    """A relay at work, and what it works on."""

    outbox: Outbox
    relay: Relay
    flow: Flow
    deliveries: Deliveries
    task: asyncio.Task[None]

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
) -> AsyncIterator[Relaying]:
    """Have a relay work; chance always draws zero, so that what is tried again is tried at once.

    Its outbox is in a file, or of the kind that a test was given.
    """
    clock = clock or SystemClock()
    built_in = load_mapping(None)
    backend = on_sqlite(place) if isinstance(place, Path) else place
    async with backend.open(clock) as outbox:
        flow = Flow(ceiling, lambda: 0.0, lambda _: None)
        deliveries = Deliveries()
        relay = Relay(
            outbox=outbox,
            mapping=mapping or (lambda: built_in),
            pointillist=pointillist,
            flow=flow,
            deliveries=deliveries,
            metrics=Metrics(),
            clock=clock,
            random=lambda: 0.0,
            max_age=max_age,
            retry_max_delay=RETRY_MAX_DELAY,
            dead_letters_most=dead_letters_most,
        )
        running = Relaying(outbox, relay, flow, deliveries, asyncio.create_task(relay.run()))
        await turns(2)
        try:
            yield running
        finally:
            await running.stop()
