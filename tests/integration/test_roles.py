"""Replicas that share an outbox on NATS, each with its part of the work, from the caller to Pointillist."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from nats.aio.client import Client

from pointillist_destination.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc, event_service_pb2
from service.app import App
from service.config.role import Role
from service.config.settings import load_settings
from service.errors import OutboxUnusableError
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import event, track
from tests.support.nats import NatsServer, nats_running
from tests.support.processes import run
from tests.support.sandboxes import TOKEN
from tests.support.servers import NAME, NOT_SERVING, SERVING, Serving, failure, serving, until_health
from tests.support.waiting import DEADLINE, until

AWAITED = event_service_pb2.SendOptions(wait_for_delivery=True)


def shared(server: NatsServer, prefix: str, **more: str) -> dict[str, str]:
    """The settings of every replica."""
    return {
        "POINTILLIST_OUTBOX_URL": server.url,
        "POINTILLIST_NATS_STREAM": prefix,
        "POINTILLIST_OUTBOX_MAX_BYTES": "10MiB",  # NATS sets so much aside for each test
        **more,
    }


@contextlib.asynccontextmanager
async def pair(
    folder: Path, server: NatsServer, prefix: str, sandbox: Sandbox | None = None
) -> AsyncIterator[tuple[Serving, Serving]]:
    """A replica that accepts, and one that relays."""
    environ = shared(server, prefix)
    async with (
        serving(folder, environ, role=Role.ACCEPT) as accepting,
        serving(folder, environ, sandbox, role=Role.RELAY) as relaying,
    ):
        yield accepting, relaying


async def test_what_one_replica_accepts_another_relays(tmp_path: Path, nats_server: NatsServer, prefix: str) -> None:
    async with pair(tmp_path, nats_server, prefix) as (accepting, relaying):
        for number in range(20):
            await accepting.events.Track(event_service_pb2.TrackRequest(track=track(number)))
        await until(lambda: len(relaying.delivered) == 20)
        assert accepting.delivered == []


async def test_who_waits_at_one_replica_hears_of_the_delivery_by_another(
    tmp_path: Path, nats_server: NatsServer, prefix: str
) -> None:
    sandbox = Sandbox(api_token=TOKEN)
    async with pair(tmp_path, nats_server, prefix, sandbox) as (accepting, _):
        request = event_service_pb2.TrackRequest(track=track(1), options=AWAITED)
        answer = await accepting.events.Track(request, timeout=DEADLINE)
        assert answer.receipt.outcome == event_service_pb2.OUTCOME_DELIVERED

        sandbox.behaviour = Behaviour(answers={"400": 1.0})
        request = event_service_pb2.TrackRequest(track=track(2), options=AWAITED)
        failed = await failure(accepting.events.Track(request, timeout=DEADLINE))
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REFUSED_BY_POINTILLIST")


async def test_each_replica_tells_of_what_it_does(tmp_path: Path, nats_server: NatsServer, prefix: str) -> None:
    async with pair(tmp_path, nats_server, prefix) as (accepting, relaying):
        for replica, known, unknown in ((accepting, NAME, "delivery"), (relaying, "delivery", NAME)):
            for name in ("", "liveness", known):
                await until_health(replica.channel, name, SERVING)
            failed = await failure(replica.health(unknown))
            assert failed.code is grpc.StatusCode.NOT_FOUND


async def test_a_replica_that_relays_serves_dead_letters_and_takes_no_events(
    tmp_path: Path, nats_server: NatsServer, prefix: str
) -> None:
    async with pair(tmp_path, nats_server, prefix) as (_, relaying):
        letters = dead_letter_service_pb2_grpc.DeadLetterServiceStub(relaying.channel)
        assert not (await letters.List(dead_letter_service_pb2.ListRequest())).dead_letters
        failed = await failure(relaying.events.Track(event_service_pb2.TrackRequest(track=track(1))))
        assert failed.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_role_of_its_own_is_refused_for_an_outbox_in_a_file() -> None:
    ended = await run("serve", "--role", "relay", environ={"POINTILLIST_API_TOKEN": TOKEN})
    assert ended.code == 2
    assert "--role relay: an outbox in a file belongs to one server" in ended.err_lines[-1]


async def test_a_server_whose_nats_is_away_lives_is_not_ready_and_becomes_so(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats") as server:
        server.stop()
        async with serving(tmp_path, shared(server, prefix)) as replica:
            # given
            await until_health(replica.channel, "liveness", SERVING)
            await until_health(replica.channel, NAME, NOT_SERVING)
            failed = await failure(replica.events.Track(event_service_pb2.TrackRequest(track=track(1))))
            assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAVAILABLE, "OUTBOX_UNAVAILABLE")
            assert failed.retry_after is not None
            batches = replica.events.BatchSend()
            await batches.write(event_service_pb2.BatchSendRequest(sequence=1, events=[event(2)]))
            answering = asyncio.ensure_future(batches.read())

            # when
            assert not answering.done()
            server.start()

            # then
            await until_health(replica.channel, NAME, SERVING)
            assert await answering == event_service_pb2.BatchSendResponse(sequence=1, accepted=1)
            await batches.done_writing()
            await replica.events.Track(event_service_pb2.TrackRequest(track=track(1)))
            await until(lambda: sorted(replica.delivered) == ["m-1", "m-2"])


async def test_relays_share_the_concurrency_that_the_operator_allows(
    tmp_path: Path, nats_server: NatsServer, prefix: str
) -> None:
    environ = shared(nats_server, prefix, POINTILLIST_MAX_CONCURRENCY="9", POINTILLIST_RELAY_REPLICAS="4")
    sandbox = Sandbox(api_token=TOKEN)
    sandbox.behaviour = Behaviour(delay=0.05)
    async with serving(tmp_path, environ, sandbox) as replica:
        await send(replica, 60)
        await until(lambda: len(replica.delivered) == 60)
    assert sandbox.most_in_flight <= 2


async def send(replica: Serving, count: int) -> None:
    call = replica.events.BatchSend()
    events = [event(number) for number in range(count)]
    await call.write(event_service_pb2.BatchSendRequest(sequence=1, events=events))
    await call.done_writing()
    async for answer in call:
        assert answer.accepted == count


async def test_streams_that_cannot_be_made_end_the_command_with_code_2(nats_server: NatsServer, prefix: str) -> None:
    environ = shared(nats_server, prefix, POINTILLIST_NATS_REPLICAS="3", POINTILLIST_API_TOKEN=TOKEN)
    ended = await run("serve", environ=environ | {"POINTILLIST_METRICS_LISTEN": ""})
    assert ended.code == 2
    assert "POINTILLIST_NATS_REPLICAS" in ended.err_lines[-1]


@pytest.mark.parametrize("role", [Role.ACCEPT, Role.RELAY])
async def test_streams_that_will_not_do_once_nats_is_there_end_a_replica_that_waited_for_it(
    tmp_path: Path, prefix: str, role: Role
) -> None:
    with nats_running(tmp_path / "nats") as server:
        # given
        client = Client()
        await client.connect(server.url)
        await client.jsm().add_stream(name=f"{prefix}_EVENTS", subjects=[f"{prefix}.events"])
        await client.close()
        server.stop()
        settings = load_settings(
            {"POINTILLIST_API_TOKEN": TOKEN, "POINTILLIST_GRPC_LISTEN": "127.0.0.1:0", "POINTILLIST_METRICS_LISTEN": ""}
            | shared(server, prefix)
        )
        serves = asyncio.Event()
        replica = asyncio.ensure_future(App(settings, role).run(lambda _: serves.set()))
        await asyncio.wait_for(serves.wait(), DEADLINE)

        # when
        server.start()

        # then
        await asyncio.wait({replica}, timeout=DEADLINE)
        assert replica.done()
        with pytest.raises(OutboxUnusableError, match="retention is limits"):
            replica.result()
