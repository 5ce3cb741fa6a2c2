"""Clients that send while the server is killed again and again, and what the oracle says at the end."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import TypeAlias

import grpc

from pointillist_destination.v1 import dead_letter_service_pb2, event_service_pb2, event_service_pb2_grpc
from service.sandbox.server import Behaviour, Sandbox
from tests.acceptance.oracle import Events, Evidence, Ledger, Verdict
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until

LONERS = 8  # clients with one event at a time
STREAMS = 2  # clients with batches
MAX_BATCH = 40  # events in a batch
BATCHES_AHEAD = 4  # batches of a stream that wait for their answers
MAX_SENT = 1200  # new events in one life of the server, so that the backlog at the end is no larger than it must be
MAX_ACCEPTED = 800  # events accepted in one life of the server, about
MAX_TAKEN = 100  # records that Pointillist takes in one life of the server, about
MAX_LIFE = 1.0  # seconds from the `serving` line to the kill
STILLBORN_SHARE = 0.15  # of all lives but the first, those that end before they serve, or just when they do
MAX_STILLBORN = 1.2  # seconds
DRAIN_DEADLINE = 300.0  # seconds from the end of the faults to an empty outbox

SEED_VARIABLE = "ORACLE_SEED"

Stub: TypeAlias = "event_service_pb2_grpc.EventServiceAsyncStub"


def drawn_seed() -> int:
    """The seed of a run: from the environment, or a new one; printed, so that pytest shows it with a failure."""
    seed = int(os.environ.get(SEED_VARIABLE) or SystemRandom().randrange(1_000_000))
    print(f"{SEED_VARIABLE}={seed}")  # noqa: T201  # pytest keeps it for the report
    return seed


@contextlib.asynccontextmanager
async def connected(server: ServerProcess) -> AsyncIterator[Stub]:
    """A stub of EventService, on a connection of its own."""
    # Without a pool of its own, a channel would share one with that of an earlier server on the same port.
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        yield event_service_pb2_grpc.EventServiceStub(channel)


async def send_one(
    stub: Stub, events: Events, number: int, *, deadline: float = DEADLINE, **options: bool
) -> event_service_pb2.Receipt:
    """Send one event in a call of its own, which ends after `deadline` seconds at the latest."""
    event = events.event(number)
    given = event_service_pb2.SendOptions(**options)
    if event.HasField("track"):
        request = event_service_pb2.TrackRequest(track=event.track, options=given)
        return (await stub.Track(request, timeout=deadline)).receipt
    identify = event_service_pb2.IdentifyRequest(identify=event.identify, options=given)
    return (await stub.Identify(identify, timeout=deadline)).receipt


async def send_alone(stub: Stub, ledger: Ledger, server: ServerProcess, most: int) -> None:
    """Send one event after another until the server is killed, or event `most` was sent."""
    while ledger.sent < most:
        number = ledger.draw()
        try:
            receipt = await send_one(stub, ledger.events, number)
        except grpc.aio.AioRpcError:
            ledger.lost_sight_of([number])
            if not server.is_killed:
                raise
            return
        assert receipt.message_id == ledger.events.message_id(number)
        ledger.answered([number], int(receipt.outcome == event_service_pb2.OUTCOME_DUPLICATE))


async def send_batches(stub: Stub, ledger: Ledger, server: ServerProcess, most: int, pause: float = 0.0) -> None:
    """Send batches until the server is killed or event `most` was sent, a few of them ahead of their answers.

    Args:
        stub: of the server.
        ledger: gives the events, and takes note of their answers.
        server: which may be killed meanwhile.
        most: the last event to send.
        pause: seconds after each answer.
    """
    call = stub.BatchSend()
    pending: deque[list[int]] = deque()
    first = 0
    try:
        while pending or ledger.sent < most:
            while len(pending) < BATCHES_AHEAD and ledger.sent < most:
                numbers = [ledger.draw() for _ in range(ledger.random.randint(1, MAX_BATCH))]
                pending.append(numbers)
                events = [ledger.events.event(number) for number in numbers]
                sequence = first + len(pending) - 1
                await call.write(event_service_pb2.BatchSendRequest(sequence=sequence, events=events))
            answer = await call.read()
            assert isinstance(answer, event_service_pb2.BatchSendResponse), "the server ended the stream with an OK"
            assert answer.sequence == first
            assert answer.accepted + answer.duplicates == len(pending[0]), answer
            ledger.answered(pending.popleft(), answer.duplicates)
            first += 1
            await asyncio.sleep(pause)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter is grpc.aio's for a call that has ended
        if not server.is_killed:
            raise
    finally:
        for numbers in pending:
            ledger.lost_sight_of(numbers)


def draw_behaviour(random: Random) -> Behaviour:
    """How Pointillist behaves in one life of the server: mostly well, or with some of everything that goes wrong."""
    weights = {"200": 10.0}
    for answer, most in (("500", 4.0), ("503", 4.0), ("429", 1.0), ("drop", 4.0), ("truncate", 2.0), ("400", 1.0)):
        if random.random() < 0.5:
            weights[answer] = random.random() * most
    return Behaviour(weights, delay=random.uniform(0.002, 0.05))


@dataclass
class CrashRun:
    """Kills a server again and again while clients send, then lets it recover, and judges.

    Args:
        outbox: the outbox file.
        seed: of everything that is drawn; how the processes interleave is not in its hands.
        text_most: see Events.
        environment: further variables of the server.
        after_kill: what happens to the disk once the process is dead.
        workers: relay workers of the server; a life begins with them, as they take as long to start as most lives last.
    """

    outbox: Path
    seed: int
    text_most: int = 60
    environment: Mapping[str, str] = field(default_factory=dict)
    after_kill: Callable[[], None] = lambda: None
    workers: int = 0
    kills: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        events = Events(f"run-{self.seed}", self.text_most)
        self.ledger = Ledger(events, Random(self._random.random()))
        self.evidence = Evidence(events)

    async def run(self, kills: int, progress: Callable[["CrashRun"], None] = lambda _: None) -> Verdict:
        """Kill the server so many times, then wait until the outbox is empty, see that an event flows, and judge."""
        start = time.monotonic()
        async with running_sandbox(seed=self.seed) as sandbox:
            settings = settings_for(self.outbox, sandbox, relay_workers=str(self.workers))
            for _ in range(kills):
                await self._live(sandbox, settings)
                self.kills += 1
                self.seconds = time.monotonic() - start
                progress(self)
            sandbox.behaviour = Behaviour()
            self.evidence.look_at_dead_letters(await recover(self.ledger, settings, self.environment))
            self.evidence.take_from(sandbox)
        self.seconds = time.monotonic() - start
        return Verdict(self.ledger, self.evidence)

    async def _live(self, sandbox: Sandbox, settings: Mapping[str, str]) -> None:
        """One life of the server, from its start to the kill."""
        sandbox.behaviour = draw_behaviour(self._random)
        server = await ServerProcess.spawn(settings, self.environment)
        try:
            if self._random.random() < STILLBORN_SHARE and self.kills > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._random.uniform(0, MAX_STILLBORN)):
                        await server.serving()
            else:
                await server.serving()
                await server.until_workers(self.workers)
                await self._send_until_killed(server, sandbox)
        finally:
            await server.kill()
        self.evidence.take_from(sandbox)
        self.after_kill()

    async def _send_until_killed(self, server: ServerProcess, sandbox: Sandbox) -> None:
        before, most = len(self.ledger.accepted), self.ledger.sent + MAX_SENT
        accepted, taken = self._random.randrange(MAX_ACCEPTED), MAX_TAKEN
        if self._random.random() < 0.5:
            accepted, taken = MAX_ACCEPTED, self._random.randrange(MAX_TAKEN)

        def is_time() -> bool:
            # What Pointillist has taken while its answer is on its way comes again in the next life.
            is_delivering = sandbox.taken >= taken and sandbox.in_flight > 0
            return is_delivering or len(self.ledger.accepted) - before >= accepted

        async with connected(server) as stub, asyncio.TaskGroup() as clients:
            for _ in range(LONERS):
                clients.create_task(send_alone(stub, self.ledger, server, most))
            for _ in range(STREAMS):
                clients.create_task(send_batches(stub, self.ledger, server, most))
            with contextlib.suppress(TimeoutError):
                await until(is_time, MAX_LIFE)
            assert server.is_running, "the server ended by itself:\n" + "\n".join(server.log)
            await server.kill()


async def recover(
    ledger: Ledger, settings: Mapping[str, str], environment: Mapping[str, str], owed: Iterable[int] = ()
) -> list[dead_letter_service_pb2.DeadLetter]:
    """Run a server without further faults until its outbox is empty and a new event flows; gives its dead letters.

    Args:
        ledger: of the run.
        settings: of the server.
        environment: its further variables.
        owed: events that are sent again first.
    """
    server = await ServerProcess.start(settings, environment)
    try:
        async with connected(server) as stub:
            for number in owed:
                ledger.repeated.add(number)
                await send_one(stub, ledger.events, number)
                ledger.answered([number])
            await drained(server)
            ledger.sent += 1
            fresh = ledger.sent
            receipt = await send_one(stub, ledger.events, fresh, wait_for_delivery=True)
            assert receipt.outcome == event_service_pb2.OUTCOME_DELIVERED
            ledger.answered([fresh])
        letters = await server.dead_letters()
        await server.stop()
    finally:
        await server.kill()
    return letters


async def drained(server: ServerProcess, deadline: float = DRAIN_DEADLINE) -> None:
    """Wait until the outbox of a server holds nothing that waits.

    Raises:
        TimeoutError: it still did, `deadline` seconds later.
    """
    waiting = (await server.until_metrics(lambda metrics: metrics["outbox_events"] <= 0, deadline))["outbox_events"]
    assert waiting == 0, f"the outbox says that it holds {waiting} events"
