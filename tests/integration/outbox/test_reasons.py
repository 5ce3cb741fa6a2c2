"""The reason that a caller is given, over a real socket, for each state in which an outbox stores nothing."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from pointillist_destination.v1 import dead_letter_service_pb2_grpc
from pointillist_destination.v1.dead_letter_service_pb2 import ReplayRequest
from service.config.address import Listen
from service.errors import OutboxError
from service.mapping.mapping_file import load_mapping
from service.outbox.capacity import Bounds
from service.outbox.sqlite.group_commit import Counts
from service.outbox.sqlite.outbox import SqliteOutbox
from service.server import dead_letter_service
from service.server.calls import Calls
from service.server.dead_letter_service import DeadLetterService
from service.server.grpc_server import listen, make_server
from service.server.health import Health
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.outboxes import opened, refuse_writes
from tests.support.servers import failure

State = Callable[[SqliteOutbox], Awaitable[object]]


async def reach_a_bound(outbox: SqliteOutbox) -> None:
    await outbox.put(entries(3))


async def fill_the_disk(outbox: SqliteOutbox) -> None:
    connection = outbox._file._connection
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutboxError):
        await outbox.put([entry(1)._replace(payload=bytes(100_000))])


async def make_the_disk_read_only(outbox: SqliteOutbox) -> None:
    refuse_writes(outbox, refuse=True)
    with pytest.raises(OutboxError):
        await outbox.put([entry(1)])


def die(_: Counts) -> None:
    """End the thread that calls it."""
    raise SystemExit


async def end_the_writer(outbox: SqliteOutbox) -> None:
    with pytest.raises(OutboxError):
        await outbox._call(die)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (reach_a_bound, "OUTBOX_FULL"),
        (fill_the_disk, "OUTBOX_FULL"),
        (make_the_disk_read_only, "OUTBOX_UNAVAILABLE"),
        (end_the_writer, "OUTBOX_UNAVAILABLE"),
        (SqliteOutbox.close, "SHUTTING_DOWN"),
    ],
)
async def test_a_caller_is_given_the_reason_and_a_time_to_try_again(tmp_path: Path, state: State, reason: str) -> None:
    async with opened(tmp_path / "outbox.db", HandClock(), bounds=Bounds(events=3)) as outbox:
        # given
        mapping = load_mapping(None)
        service = DeadLetterService(dead_letters=outbox.dead_letters, mapping=lambda: mapping)
        health = Health(why_dead=lambda: None, why_not_ready=lambda: None, is_getting_through=None)
        server = make_server([dead_letter_service.handlers(service, Calls(most=100))], [], health, reflect=False)
        address = listen(server, "TEST", Listen("127.0.0.1", 0))
        await server.start()
        await state(outbox)

        # when
        async with grpc.aio.insecure_channel(str(address)) as channel:
            stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
            failed = await failure(stub.Replay(ReplayRequest(all=True)))
        await server.stop(0)

        # then
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAVAILABLE, reason)
        assert failed.retry_after is not None
        assert failed.retry_after > 0
