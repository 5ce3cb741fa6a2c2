"""A replica that is cut from NATS: what it answers meanwhile, and that it heals by itself and loses nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import nats
import pytest

from pointillist_destination.v1.event_service_pb2 import (
    OUTCOME_ACCEPTED,
    OUTCOME_DUPLICATE,
    BatchSendRequest,
    BatchSendResponse,
    TrackRequest,
)
from service.clock import SystemClock
from service.errors import OutboxUnavailableError
from service.outbox.jetstream.dead_letters import READ_AT_ONCE
from service.outbox.jetstream.streams import MIN_ACK_WAIT, Plan
from tests.support.cut import CuttableProxy, cuttable
from tests.support.events import entries, event, track
from tests.support.nats import NatsServer
from tests.support.nats_cluster import streams_of
from tests.support.outboxes import bury, opened_on_nats
from tests.support.servers import NAME, NOT_SERVING, SERVING, Failed, Serving, failed, serving, until_health
from tests.support.waiting import until

CALLERS = 4
ACK_WAIT = float(MIN_ACK_WAIT)  # seconds after which JetStream gives an event again of which it hears nothing
PAUSE = 0.05  # seconds until a caller that was refused tries again, which is less than it is told to wait
CALL_DEADLINE = 15.0  # seconds that a caller gives an answer; an UNAVAILABLE has to come before
CHECKS = 20  # other calls that pass while a stream is not read
BATCHES = 40
BATCH_EVENTS = 40
FILLING = "x" * 16_000  # bytes in an event: the batches are far more than HTTP/2 and the server hold unread together

CUTS = [
    CuttableProxy.reset,
    pytest.param(CuttableProxy.freeze, marks=pytest.mark.long),  # it is noticed by a silence of seconds
]


@asynccontextmanager
async def behind_a_proxy(
    nats_server: NatsServer, prefix: str, folder: Path
) -> AsyncIterator[tuple[Serving, CuttableProxy]]:
    """A replica whose one way to NATS can be cut; what was on its way to it then comes again after a few seconds."""
    async with (
        streams_of(nats_server.url, Plan(prefix)) as streams,
        cuttable("127.0.0.1", nats_server.port) as proxy,
    ):
        await streams.make(ACK_WAIT)
        environ = {
            "POINTILLIST_OUTBOX_URL": f"nats://127.0.0.1:{proxy.port}",
            "POINTILLIST_NATS_STREAM": prefix,
            "POINTILLIST_OUTBOX_MAX_BYTES": "10MiB",  # NATS sets so much aside for each test
        }
        async with serving(folder, environ) as server:
            await until_health(server.channel, NAME, SERVING)
            yield server, proxy
            proxy.heal()  # a replica that cannot reach NATS would take its time to stop


class Caller:
    """Sends one event after another, and each until it was answered."""

    def __init__(self, server: Serving, name: str) -> None:
        self.server = server
        self.name = name
        self.sent = 0
        self.accepted: list[str] = []
        self.failures: list[Failed] = []
        self.is_over = False

    async def run(self) -> None:
        while not self.is_over:
            self.sent += 1
            message_id = f"{self.name}-{self.sent}"
            request = TrackRequest(track=track(self.sent, message_id=message_id))
            try:
                receipt = (await self.server.events.Track(request, timeout=CALL_DEADLINE)).receipt
            except grpc.aio.AioRpcError as error:
                self.failures.append(failed(error))
                await asyncio.sleep(PAUSE)
                continue
            assert receipt.outcome == OUTCOME_ACCEPTED
            self.accepted.append(message_id)


@pytest.mark.parametrize("cut", CUTS)
async def test_a_replica_that_is_cut_off_is_not_ready_and_refuses_and_delivers_what_it_took_once_it_is_healed(
    cut: object, nats_server: NatsServer, prefix: str, tmp_path: Path
) -> None:
    assert callable(cut)
    async with behind_a_proxy(nats_server, prefix, tmp_path) as (server, proxy):
        # given
        callers = [Caller(server, f"c{number}") for number in range(CALLERS)]
        tasks = [asyncio.create_task(caller.run()) for caller in callers]
        await until(lambda: all(len(caller.accepted) > 10 for caller in callers))

        # when
        cut(proxy)
        await until_health(server.channel, "", NOT_SERVING)
        await until(lambda: all(caller.failures for caller in callers))
        assert await server.health("liveness") == SERVING
        before = [len(caller.accepted) for caller in callers]
        proxy.heal()
        await until_health(server.channel, NAME, SERVING)
        await until(lambda: all(len(caller.accepted) > before[n] + 10 for n, caller in enumerate(callers)))
        for caller in callers:
            caller.is_over = True
        await asyncio.gather(*tasks)

        # then
        for caller in callers:
            assert {failure.code for failure in caller.failures} == {grpc.StatusCode.UNAVAILABLE}
            assert all(failure.retry_after for failure in caller.failures)
        accepted = {message_id for caller in callers for message_id in caller.accepted}
        await until(lambda: accepted <= set(server.delivered))


@pytest.mark.parametrize("cut", CUTS)
async def test_a_stream_is_not_read_while_its_replica_is_cut_off_and_goes_on_to_its_end_after(
    cut: object, nats_server: NatsServer, prefix: str, tmp_path: Path
) -> None:
    assert callable(cut)
    async with behind_a_proxy(nats_server, prefix, tmp_path) as (server, proxy):
        # given
        call = server.events.BatchSend()
        answers: list[BatchSendResponse] = []
        written = 0

        async def write() -> None:
            nonlocal written
            for number in range(BATCHES):
                numbers = range(BATCH_EVENTS * number, BATCH_EVENTS * (number + 1))
                events = [event(one, properties={"filling": FILLING}) for one in numbers]
                await call.write(BatchSendRequest(sequence=number, events=events))
                written += 1
            await call.done_writing()

        async def read() -> None:
            async for answer in call:
                answers.append(answer)  # noqa: PERF401  each is seen as it comes

        # when
        cut(proxy)
        await until_health(server.channel, "", NOT_SERVING)
        writing, reading = asyncio.create_task(write()), asyncio.create_task(read())
        for _ in range(CHECKS):
            assert await server.health("liveness") == SERVING

        # then
        assert written < BATCHES
        assert answers == []

        # and when it is healed
        proxy.heal()
        await asyncio.gather(writing, reading)
        assert [answer.sequence for answer in answers] == list(range(BATCHES))
        assert all(answer.accepted + answer.duplicates == BATCH_EVENTS for answer in answers)
        await until(lambda: len(set(server.delivered)) == BATCHES * BATCH_EVENTS)


@pytest.mark.parametrize("cut", CUTS)
async def test_a_batch_that_was_read_before_the_cut_is_answered_once_it_is_on_the_stream(
    cut: object, nats_server: NatsServer, prefix: str, tmp_path: Path
) -> None:
    assert callable(cut)
    async with behind_a_proxy(nats_server, prefix, tmp_path) as (server, proxy):
        # given a replica that does not know of the cut yet
        call = server.events.BatchSend()
        cut(proxy)
        await call.write(BatchSendRequest(sequence=1, events=[event(number) for number in range(20)]))
        await until_health(server.channel, "", NOT_SERVING)

        # when
        proxy.heal()
        answer = await call.read()

        # then
        assert isinstance(answer, BatchSendResponse)
        assert (answer.sequence, answer.accepted + answer.duplicates) == (1, 20)
        await until(lambda: len(set(server.delivered)) == 20)
        await until_health(server.channel, NAME, SERVING)
        repeated = await server.events.Track(TrackRequest(track=track(1)))
        assert repeated.receipt.outcome == OUTCOME_DUPLICATE
        await call.done_writing()


async def test_dead_letters_that_cannot_be_read_to_their_end_are_an_error_and_not_fewer(
    nats_server: NatsServer, prefix: str
) -> None:
    plan = Plan(prefix)
    async with opened_on_nats(nats_server.url, plan, SystemClock()) as outbox:
        # given
        count = READ_AT_ONCE + 10
        await bury(outbox, entries(count))
        lots = outbox._letters._read(0, count)
        assert len(await anext(lots)) == READ_AT_ONCE

        # when the consumer that reads them is gone, as it is with its server
        async with await nats.connect(nats_server.url) as client:
            for consumer in await client.jetstream().consumers_info(plan.letters_stream):
                await client.jetstream().delete_consumer(plan.letters_stream, consumer.name)

        # then
        with pytest.raises(OutboxUnavailableError, match="broke off"):
            await anext(lots)
