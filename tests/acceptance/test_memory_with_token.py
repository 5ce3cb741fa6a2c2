"""Callers with a token that need much memory: large batches on many streams, and answers that nobody reads."""

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from pointillist_destination.v1.dead_letter_service_pb2 import ListRequest
from pointillist_destination.v1.event_pb2 import Event
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, BatchSendResponse
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.behaviour import Behaviour
from tests.acceptance.neighbours import BAD, DEAD_LETTER_SERVICE, Street, street
from tests.support.cgroups import memory_cgroup
from tests.support.events import track
from tests.support.raw_http2 import message, raw_connection
from tests.support.sizes import sized
from tests.support.waiting import until

GIBIBYTE = 1024**3
STREAMS = sized(30, 200)
LISTS = sized(120, 200)
LARGE_EVENT = 31_000  # bytes; 125 of them are a batch of almost 4 MiB
IN_LARGE_BATCH = 125
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
MAX_UNREAD = 16 * 1024 * 1024  # bytes of one caller's answers
MAX_KEPT = MAX_UNREAD // 230_000  # a page is a little smaller than its bound of 256 KiB
MAX_MISSED = 4  # probes in a row, of four a second: the test itself keeps the machine busy with 800 MB
METADATA = (("authorization", f"Bearer {BAD}"),)


def large_batch(stream: int) -> bytes:
    """A batch of almost 4 MiB, of events of this stream alone."""
    request = BatchSendRequest(sequence=1)
    for index in range(IN_LARGE_BATCH):
        one = track(index, message_id=f"large-{stream}-{index}", properties={"text": "x" * LARGE_EVENT})
        request.events.append(Event(track=one))
    return request.SerializeToString()


async def large_batches(here: Street) -> int:
    """Send a large batch on each of many streams at once; returns how many events were accepted."""
    channels = [
        grpc.aio.insecure_channel(here.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)
    ]

    async def send(number: int) -> int:
        call = channels[number % len(channels)].stream_stream(
            "/pointillist_destination.v1.EventService/BatchSend",
            response_deserializer=BatchSendResponse.FromString,
        )(metadata=METADATA)
        await call.write(large_batch(number))
        answer = await call.read()
        await call.done_writing()
        return int(answer.accepted)

    try:
        return sum(await asyncio.gather(*(send(number) for number in range(STREAMS))))
    finally:
        for channel in channels:
            await channel.close()


async def bury_some(here: Street) -> None:
    """Have more dead letters than a page holds."""
    here.sandbox.behaviour = Behaviour(answers={"400": 1.0})
    async with grpc.aio.insecure_channel(here.address) as channel:
        events = [Event(track=track(n, properties={"text": "x" * 25_000})) for n in range(12)]
        call = EventServiceStub(channel).BatchSend(iter([BatchSendRequest(events=events)]), metadata=METADATA)
        async for _ in call:
            pass
    await here.server.until_metrics(lambda metrics: metrics["dead_letters"] == 12)
    here.sandbox.behaviour = Behaviour()


async def test_large_batches_on_many_streams_and_unread_pages_fit_into_a_gibibyte(tmp_path: Path) -> None:
    with memory_cgroup(f"pointillist-{os.getpid()}", GIBIBYTE) as group:
        async with street(tmp_path) as here, AsyncExitStack() as stack:
            # given
            (group / "cgroup.procs").write_text(str(here.server.process.pid), encoding="ascii")
            await bury_some(here)
            unread = await stack.enter_async_context(raw_connection(here.address, window=0))
            accepted = 0

            async def attack() -> None:
                nonlocal accepted
                for _ in range(LISTS):
                    request = message(ListRequest().SerializeToString())
                    await unread.call(f"{DEAD_LETTER_SERVICE}/List", request, token=BAD)
                accepted = await large_batches(here)

            # when
            await here.beside(attack)
            await here.until_delivered()

            # then nothing is lost, and only some of the pages are kept for who does not read them
            assert accepted == STREAMS * IN_LARGE_BATCH
            answers = list(unread.answers.values())
            await until(lambda: sum(answer.is_ended for answer in answers) >= LISTS - MAX_KEPT)
            refused = [answer for answer in answers if answer.is_ended]
            assert {answer.code for answer in refused} == {UNAVAILABLE}
            assert all("not read" in answer.status.message for answer in refused)

            # then who reads has them after all
            for stream, answer in unread.answers.items():
                if not answer.is_ended:
                    await unread.open_window(stream)
            await unread.open_window(0)
            await until(lambda: all(answer.is_ended for answer in answers))
            assert {answer.code for answer in answers} == {0, UNAVAILABLE}
            assert sum(answer.data for answer in answers) <= MAX_UNREAD
            await here.stop()
            here.show()
            assert here.seen["track"].ok_share == here.seen["batch"].ok_share == 1
            assert here.seen["health"].missed_in_a_row <= MAX_MISSED
