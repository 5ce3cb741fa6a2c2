"""Two replicas on one outbox: what one did, the other tells of and goes on with."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from pointillist_destination.v1.event_service_pb2 import OUTCOME_ACCEPTED, OUTCOME_DELIVERED, SendOptions, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import track
from tests.support.nats import NatsServer
from tests.support.processes import Ended, run
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.servers import failure
from tests.support.waiting import DEADLINE, until

LETTERS = 3
WAIT = SendOptions(wait_for_delivery=True)


@dataclass(frozen=True)
class Replicas:
    """A replica that accepts, one that relays, and the Pointillist behind them."""

    accepting: ServerProcess
    relaying: ServerProcess
    sandbox: Sandbox

    async def send(self, number: int, options: SendOptions | None = None) -> int:
        """Send an event to the one that accepts; gives the outcome."""
        async with grpc.aio.insecure_channel(self.accepting.address) as channel:
            request = TrackRequest(track=track(number), options=options)
            return (await EventServiceStub(channel).Track(request, timeout=DEADLINE)).receipt.outcome


async def letters(replica: ServerProcess, *arguments: str) -> Ended:
    """Run a command of `dead-letters` against a replica."""
    return await run("dead-letters", *arguments, environ={"POINTILLIST_GRPC_LISTEN": replica.address})


@contextlib.asynccontextmanager
async def replicas_on(nats_server: NatsServer, prefix: str, behaviour: Behaviour) -> AsyncIterator[Replicas]:
    async with running_sandbox(behaviour) as sandbox:
        settings = settings_for(nats_server.url, sandbox, nats_stream=prefix)
        async with contextlib.AsyncExitStack() as stack:
            accepting = await ServerProcess.spawn(settings, role="accept")
            stack.push_async_callback(accepting.kill)
            relaying = await ServerProcess.spawn(settings, role="relay")
            stack.push_async_callback(relaying.kill)
            await asyncio.gather(accepting.serving(), relaying.serving())
            yield Replicas(accepting, relaying, sandbox)


async def test_a_caller_of_one_replica_is_told_what_became_of_its_event_at_another(
    nats_server: NatsServer, prefix: str
) -> None:
    async with replicas_on(nats_server, prefix, Behaviour()) as replicas:
        # when Pointillist takes it, and when it refuses it
        delivered = await replicas.send(1, WAIT)
        replicas.sandbox.behaviour = Behaviour({"400": 1.0})
        refused = await failure(replicas.send(2, WAIT))

        # then
        assert delivered == OUTCOME_DELIVERED
        assert [taken.message_id for taken in replicas.sandbox.records] == ["m-1"]
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.info.metadata["message_id"] == "m-2"
        assert refused.retry_after is None


async def test_what_one_replica_gave_up_another_lists_shows_deletes_and_replays(
    nats_server: NatsServer, prefix: str
) -> None:
    async with replicas_on(nats_server, prefix, Behaviour({"400": 1.0})) as replicas:
        # given
        for number in range(LETTERS):
            assert await replicas.send(number) == OUTCOME_ACCEPTED
        await until(lambda: replicas.sandbox.requests == LETTERS)
        await _until_letters(replicas.accepting, LETTERS)

        # when
        listed = await letters(replicas.accepting, "list")
        shown = await letters(replicas.accepting, "show", listed.out.split()[0])
        deleted = await letters(replicas.accepting, "delete", listed.out.split()[0])
        replicas.sandbox.behaviour = Behaviour()
        replayed = await letters(replicas.accepting, "replay", "--all")
        left = await letters(replicas.relaying, "list")

        # then
        assert (listed.code, len(listed.out_lines)) == (0, LETTERS)
        gone = json.loads(shown.out)["deadLetter"]["messageId"]
        assert (deleted.out, replayed.out) == ("deleted: 1\n", f"replayed: {LETTERS - 1}\n")
        assert left.err == "no dead letters\n"
        await until(lambda: replicas.sandbox.taken == LETTERS - 1)
        assert {taken.message_id for taken in replicas.sandbox.records} == {f"m-{n}" for n in range(LETTERS)} - {gone}


async def _until_letters(replica: ServerProcess, count: int) -> None:
    """Wait until so many dead letters are told of by a replica that made none of them."""
    async with asyncio.timeout(DEADLINE):
        while len(await replica.dead_letters()) < count:
            pass
