"""A server that is killed in the middle of its work loses nothing of what it said it had taken."""

import asyncio
import contextlib
from pathlib import Path

import grpc

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from tests.support.events import event
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

BATCH = 20  # events
BATCHES = 10_000  # far more than are answered before the kill
ANSWERED = 40  # batches that are answered before the kill, at least


async def test_every_event_that_was_counted_as_accepted_reaches_pointillist_after_a_kill(
    tmp_path: Path, relay_workers: str
) -> None:
    accepted: set[str] = set()
    async with running_sandbox() as sandbox:
        # given a server in the middle of a stream
        async with (
            running_server(sandbox, tmp_path, relay_workers=relay_workers) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            call = EventServiceStub(channel).BatchSend()

            async def write() -> None:
                for number in range(BATCHES):
                    events = [event(BATCH * number + index) for index in range(BATCH)]
                    await call.write(BatchSendRequest(sequence=number, events=events))

            writing = asyncio.create_task(write())
            with contextlib.suppress(grpc.aio.AioRpcError):  # with what the kill ends the call is gRPC's affair
                async for answer in call:
                    assert answer.accepted == BATCH
                    accepted.update(f"m-{BATCH * answer.sequence + index}" for index in range(BATCH))
                    if answer.sequence == ANSWERED:
                        server.process.kill()  # when
            await asyncio.gather(writing, return_exceptions=True)
        assert len(accepted) > BATCH * ANSWERED

        # then
        async with running_server(sandbox, tmp_path, relay_workers=relay_workers):
            taken: set[str] = set()
            async with asyncio.timeout(DEADLINE):
                while not accepted <= taken:
                    taken = await until_taken(sandbox, len(accepted))
                    await asyncio.sleep(0.01)
