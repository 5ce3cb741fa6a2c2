"""What a replay of dead letters comes to: refused again, or cut off by the end of the process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from pointillist_destination.v1 import dead_letter_service_pb2 as messages
from pointillist_destination.v1 import dead_letter_service_pb2_grpc, event_service_pb2, event_service_pb2_grpc
from service.outbox.base import Pick
from service.sandbox.server import Behaviour, Sandbox
from tests.support.clock import HandClock
from tests.support.events import entries, event
from tests.support.outboxes import ALL, bury, opened
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until

MANY = 10_000  # dead letters, enough for a replay to be killed in the middle of


@asynccontextmanager
async def sandboxed(behaviour: Behaviour) -> AsyncIterator[Sandbox]:
    """Run a sandbox."""
    sandbox = Sandbox(api_token=TOKEN, behaviour=behaviour, keep=2 * MANY)
    await sandbox.start("127.0.0.1", 0)
    try:
        yield sandbox
    finally:
        await sandbox.stop()


async def ten_dead_letters(server: ServerProcess) -> list[messages.DeadLetter]:
    """Wait until a server has ten dead letters."""
    async with asyncio.timeout(DEADLINE):
        while len(letters := await server.dead_letters()) < 10:  # noqa: ASYNC110  it has to be asked for over a socket
            await asyncio.sleep(0.02)
    return letters


async def test_a_replayed_event_that_is_refused_again_is_a_dead_letter_again_and_tried_no_more(tmp_path: Path) -> None:
    async with sandboxed(Behaviour()) as sandbox:
        server = await ServerProcess.start(settings_for(tmp_path / "outbox.db", sandbox))
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                # given: one event is taken, so that it is not the set-up that is wrong, and ten are refused
                events = event_service_pb2_grpc.EventServiceStub(channel)
                delivered = event_service_pb2.TrackRequest(
                    track=event(99).track, options=event_service_pb2.SendOptions(wait_for_delivery=True)
                )
                await events.Track(delivered)
                sandbox.behaviour = Behaviour({"400": 1.0})
                batch = event_service_pb2.BatchSendRequest(events=[event(n) for n in range(10)])
                assert [answer.accepted async for answer in events.BatchSend(iter([batch]))] == [10]
                await until(lambda: sandbox.answers["400"] == 10)
                before = await ten_dead_letters(server)

                # when
                stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
                answer = await stub.Replay(messages.ReplayRequest(all=True))
                after = await ten_dead_letters(server)
                await server.stop()

                # then
                assert answer.replayed == 10
                assert sandbox.answers["400"] == 20
                assert {letter.message_id for letter in before} == {letter.message_id for letter in after}
                assert not {letter.id for letter in before} & {letter.id for letter in after}
        finally:
            await server.kill()


async def test_a_server_killed_in_the_middle_of_a_replay_leaves_each_event_in_one_of_the_two_places(
    tmp_path: Path,
) -> None:
    # given
    path = tmp_path / "outbox.db"
    async with opened(path, HandClock()) as outbox:
        await bury(outbox, entries(MANY))
    async with sandboxed(Behaviour({"503": 1.0})) as sandbox:
        server = await ServerProcess.start(settings_for(path, sandbox))
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)

            # when
            replaying = asyncio.ensure_future(stub.Replay(messages.ReplayRequest(all=True)))
            await until(lambda: sandbox.requests > 0)
            await server.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await replaying

    # then
    async with opened(path, HandClock()) as outbox:
        letters = {letter.message_id for letter in await outbox.dead_letters.list(ALL, after=0, limit=2 * MANY)}
        pending = [*await outbox.fetch(2 * MANY), *await outbox.fetch(2 * MANY, Pick.TRIED)]
        waiting = [stored.message_id for stored in pending]
        assert 0 < len(letters) < MANY
        assert len(waiting) == len(set(waiting)) == outbox.stats().events
        assert not letters & set(waiting)
        assert len(letters) + len(waiting) == MANY
        assert outbox.stats().dead_letters == len(letters)
