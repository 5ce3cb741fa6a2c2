"""Every event that is sent is counted once, whatever Pointillist answers and whatever the events are.

accepted + duplicates + filtered + rejected = sent
delivered + dead letters + waiting = accepted     at any quiet moment
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc

from pointillist_destination.v1 import event_pb2, event_service_pb2
from service.sandbox.server import Behaviour, Sandbox
from tests.acceptance.crashes import Stub, connected, drained, drawn_seed
from tests.acceptance.oracle import Events
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.sizes import sized
from tests.support.waiting import DEADLINE

BATCHES = sized(10, 20)
BATCH = 50  # events
SINGLE_CALLS = sized(100, 200)
OUTCOMES = ("accepted", "duplicate", "filtered", "rejected")
MIXED = Behaviour({"200": 10.0, "400": 2.0, "413": 1.0, "500": 2.0, "429": 0.1, "drop": 1.0, "truncate": 0.5})
DOWN = Behaviour({"503": 1.0})
METRICS_INTERVAL = 0.02  # seconds between two looks at the metrics
OUTCOME_NAMES = {
    event_service_pb2.OUTCOME_ACCEPTED: "accepted",
    event_service_pb2.OUTCOME_DUPLICATE: "duplicate",
    event_service_pb2.OUTCOME_FILTERED: "filtered",
}


@dataclass
class Mix:
    """Events of every kind, and what has to become of each."""

    random: Random
    events: Events = field(default_factory=lambda: Events("mix"))
    number: int = 0
    expected: Counter[str] = field(default_factory=Counter)

    def draw(self) -> event_pb2.Event:
        """The next event: mostly a good one, or a repeated, a filtered or a bad one."""
        kind = self.random.choices(OUTCOMES, (7, 1, 1, 1))[0]
        if kind == "duplicate" and self.number:
            self.expected["duplicate"] += 1
            return self.events.event(self.number)
        self.number += kind in {"accepted", "duplicate"}
        event = self.events.event(self.number or 1)
        message = event.track if event.HasField("track") else event.identify
        if kind == "filtered":
            message.integrations.update({"Pointillist": False})
        elif kind == "rejected":
            message.user_id = message.anonymous_id = ""
        else:
            kind = "accepted"
        self.expected[kind] += 1
        return event


async def send_batches(stub: Stub, mix: Mix) -> Counter[str]:
    """Send batches; returns what the answers count."""
    counted: Counter[str] = Counter()
    call = stub.BatchSend()
    for sequence in range(BATCHES):
        events = [mix.draw() for _ in range(BATCH)]
        await call.write(event_service_pb2.BatchSendRequest(sequence=sequence, events=events))
    await call.done_writing()
    async for answer in call:
        rejected = len(answer.rejections)
        assert answer.accepted + answer.duplicates + answer.filtered + rejected == BATCH
        counted.update(
            accepted=answer.accepted, duplicate=answer.duplicates, filtered=answer.filtered, rejected=rejected
        )
    return counted


async def send_singly(stub: Stub, mix: Mix) -> Counter[str]:
    """Send events in calls of their own; returns what the answers count."""
    counted: Counter[str] = Counter()
    for _ in range(SINGLE_CALLS):
        event = mix.draw()
        try:
            if event.HasField("track"):
                receipt = (await stub.Track(event_service_pb2.TrackRequest(track=event.track))).receipt
            else:
                receipt = (await stub.Identify(event_service_pb2.IdentifyRequest(identify=event.identify))).receipt
            counted[OUTCOME_NAMES[receipt.outcome]] += 1
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            counted["rejected"] += 1
    return counted


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, behaviour: Behaviour, seed: int) -> AsyncIterator[tuple[Sandbox, ServerProcess]]:
    """A server and its sandbox."""
    async with running_sandbox(behaviour, seed) as sandbox:
        server = await ServerProcess.start(settings_for(tmp_path / "outbox.db", sandbox))
        try:
            yield sandbox, server
            await server.stop()
        finally:
            await server.kill()


async def balance(sandbox: Sandbox, server: ServerProcess, accepted: int) -> dict[str, int]:
    """Where the accepted events are, once the counts of the sandbox and of the server agree with their number.

    Raises:
        AssertionError: they never did, with the last counts.
    """
    found: dict[str, int] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while sum(found.values()) != accepted:
                await asyncio.sleep(METRICS_INTERVAL)
                metrics = await server.metrics()
                found = {
                    "delivered": len({taken.message_id for taken in sandbox.records}),
                    "dead": int(metrics["dead_letters"]),
                    "waiting": int(metrics["outbox_events"]),
                }
    assert sum(found.values()) == accepted, f"{found} do not add up to {accepted}"
    return found


async def test_every_event_is_counted_once_and_is_in_one_place_at_every_quiet_moment(tmp_path: Path) -> None:
    seed = drawn_seed()
    mix = Mix(Random(seed))
    async with serving(tmp_path, MIXED, seed) as (sandbox, server), connected(server) as stub:
        # given a first part that meets good and bad answers, and a second that meets an outage
        counted = await send_batches(stub, mix)
        await drained(server)
        sandbox.behaviour = DOWN
        counted += await send_singly(stub, mix)

        # when
        in_the_middle = await balance(sandbox, server, mix.expected["accepted"])
        metrics = await server.metrics()
        sandbox.behaviour = MIXED
        await drained(server)
        at_the_end = await balance(sandbox, server, mix.expected["accepted"])

        # then
        assert counted == mix.expected
        assert counted.total() == BATCHES * BATCH + SINGLE_CALLS
        assert {kind: metrics[f"events_total{{{kind}}}"] for kind in OUTCOMES} == counted
        assert min(in_the_middle.values()) > 0, in_the_middle
        assert at_the_end["waiting"] == 0
        assert min(at_the_end["delivered"], at_the_end["dead"]) > 0, at_the_end
        delivered, dead = {taken.message_id for taken in sandbox.records}, await server.dead_letters()
        assert delivered.isdisjoint(letter.message_id for letter in dead)
