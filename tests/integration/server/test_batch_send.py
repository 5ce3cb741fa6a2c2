"""BatchSend over real sockets: batches in, answers in their order."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from pointillist_destination.v1 import event_pb2
from pointillist_destination.v1.event_service_pb2 import (
    BatchSendRequest,
    BatchSendResponse,
    Rejection,
    TrackRequest,
)
from service.events.batch_frame import read_batch
from service.sandbox.server import Behaviour
from tests.support.events import event, identify, track
from tests.support.servers import NAME, Serving, failed, serving
from tests.support.waiting import turns, until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as server:
        yield server


async def send(server: Serving, batches: Iterable[BatchSendRequest]) -> list[BatchSendResponse]:
    """Send batches, and read every answer."""
    call = server.events.BatchSend()
    for batch in batches:
        await call.write(batch)
    await call.done_writing()
    return [answer async for answer in call]


async def send_raw(server: Serving, batch: bytes) -> BatchSendResponse:
    """Send one batch of any bytes."""
    call = server.channel.stream_stream(f"/{NAME}/BatchSend", lambda data: data, BatchSendResponse.FromString)()
    await call.write(batch)
    await call.done_writing()
    [answer] = [answer async for answer in call]
    assert isinstance(answer, BatchSendResponse)
    return answer


def batch(sequence: int, *events: event_pb2.Event) -> BatchSendRequest:
    return BatchSendRequest(sequence=sequence, events=events)


def counts(answer: BatchSendResponse) -> tuple[int, int, int, int]:
    """Accepted, duplicates, filtered and rejected."""
    return answer.accepted, answer.duplicates, answer.filtered, len(answer.rejections)


def violations(rejection: Rejection) -> set[str]:
    """The fields at fault; every rejection has a code and an ErrorInfo, as a unary call has."""
    assert rejection.status.code == code_pb2.INVALID_ARGUMENT
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert any(detail.Unpack(info) for detail in rejection.status.details)
    assert info.domain == "pointillist-destination"
    assert any(detail.Unpack(bad_request) for detail in rejection.status.details)
    return {one.field for one in bad_request.field_violations}


async def test_answers_come_in_the_order_of_the_requests_with_their_sequences(server: Serving) -> None:
    sequences = [7, 3, 2**64 - 1, 0, 3, *range(100, 150)]
    answers = await send(server, [batch(sequence, event(index)) for index, sequence in enumerate(sequences)])
    assert [answer.sequence for answer in answers] == sequences
    assert {counts(answer) for answer in answers} == {(1, 0, 0, 0)}
    await until(lambda: len(server.delivered) == len(sequences))


async def test_each_event_of_a_batch_is_judged_by_itself(server: Serving) -> None:
    [answer] = await send(
        server,
        [
            batch(
                1,
                event(1),
                event(2, event="", message_id="bad-1"),
                event_pb2.Event(identify=identify(3)),
                event_pb2.Event(),
                event(4, integrations={"All": False}),
                event(1),
                event(5, user_id="", properties={"a": math.nan}),
                event(6, message_id=""),
            )
        ],
    )
    assert counts(answer) == (3, 1, 1, 3)
    assert [(one.index, one.message_id, violations(one)) for one in answer.rejections] == [
        (1, "bad-1", {"track.event"}),
        (3, "", {"type"}),
        (6, "m-5", {"track.user_id", "track.properties.a"}),
    ]
    await until(lambda: len(server.delivered) == 3)
    assert {"m-1", "i-3"} < set(server.delivered)


async def test_an_event_whose_bytes_do_not_parse_spoils_nothing_but_itself(server: Serving) -> None:
    good = event(1).SerializeToString()
    for bad in (b"\xff\xff", good[:-3], b"\x12\x03\x0a\x01\xff", b"\x12\x7f"):
        raw = b"\x08\x05" + b"".join(b"\x12" + bytes((len(one),)) + one for one in (bad, good, bad))
        answer = await send_raw(server, raw)
        assert (answer.sequence, answer.accepted + answer.duplicates) == (5, 1)
        assert [(one.index, violations(one)) for one in answer.rejections] == [(0, {""}), (2, {""})]


async def test_a_batch_whose_own_bytes_do_not_parse_ends_the_stream(server: Serving) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await send_raw(server, b"\x12\xff")
    error = failed(raised.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.info.reason


async def test_an_empty_batch_and_an_empty_stream_are_answered(server: Serving) -> None:
    assert [counts(answer) for answer in await send(server, [batch(1)])] == [(0, 0, 0, 0)]
    assert await send(server, []) == []


async def test_duplicates_are_found_within_a_batch_across_batches_and_across_calls(server: Serving) -> None:
    await server.events.Track(TrackRequest(track=track(9)))
    answers = await send(server, [batch(1, event(1), event(1), event(9)), batch(2, event(1), event(2))])
    assert [counts(answer) for answer in answers] == [(1, 2, 0, 0), (1, 1, 0, 0)]


async def test_a_batch_of_2500_events_is_taken_whole(server: Serving) -> None:
    events = [event(number % 2400, event="" if number % 100 == 0 else "Order") for number in range(2500)]
    [answer] = await send(server, [BatchSendRequest(sequence=1, events=events)])
    assert sum(counts(answer)) == 2500
    assert counts(answer) == (2376, 99, 0, 25)
    await until(lambda: server.sandbox.taken == 2376)


async def test_what_is_counted_as_accepted_is_delivered(server: Serving) -> None:
    answers = await send(server, (batch(n, *(event(20 * n + index) for index in range(20))) for n in range(50)))
    assert [counts(answer) for answer in answers] == [(20, 0, 0, 0)] * 50
    await until(lambda: server.sandbox.taken == 1000)
    assert len(set(server.delivered)) == 1000


async def test_a_full_outbox_stops_the_stream_and_does_not_fail_it(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_OUTBOX_MAX_EVENTS": "20"}) as server:
        # given a Pointillist that takes nothing
        server.sandbox.behaviour = Behaviour({"503": 1})
        call = server.events.BatchSend()
        answers: list[BatchSendResponse] = []

        async def write() -> None:
            for number in range(100):
                await call.write(batch(number, *(event(10 * number + index) for index in range(10))))
            await call.done_writing()

        async def read() -> None:
            async for answer in call:
                answers.append(answer)  # noqa: PERF401  each is seen as it comes

        writing, reading = asyncio.create_task(write()), asyncio.create_task(read())

        # when the outbox is full, then the answers stop
        await until(lambda: len(answers) >= 2)
        await until(lambda: server.sandbox.requests >= 10)
        await turns(200)
        assert len(answers) <= 4
        assert not reading.done()

        # when there is room, then they go on to the end
        server.sandbox.behaviour = Behaviour()
        await asyncio.gather(writing, reading)
        assert [answer.sequence for answer in answers] == list(range(100))
        assert sum(answer.accepted for answer in answers) == 1000
        await until(lambda: len(set(server.delivered)) == 1000)


def server_tasks() -> int:
    """Tasks in this process, but for those of the sandbox: it keeps one for each connection that may be used again."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return sum(name != "RequestHandler.start" for name in names)


async def test_streams_that_callers_abandon_leave_no_task_behind(server: Serving) -> None:
    # given
    await send(server, [batch(0, event(0))])
    await until(lambda: server.delivered)
    before = server_tasks()

    # when
    for number in range(1, 30):
        call = server.events.BatchSend()
        await call.write(batch(number, event(number)))
        if number % 2:
            await call.read()
        call.cancel()

    # then
    await until(lambda: server_tasks() <= before)
    assert [counts(answer) for answer in await send(server, [batch(1, event(100))])] == [(1, 0, 0, 0)]


async def test_a_stream_is_ended_by_shutdown_with_what_it_took_answered(server: Serving) -> None:
    call = server.events.BatchSend()
    for number in range(5):
        await call.write(batch(number, event(number)))
    sequences: list[int] = []

    async def read() -> None:
        async for answer in call:
            sequences.append(answer.sequence)
            server.app.stop()

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read()
    assert sequences
    assert sequences == list(range(len(sequences)))
    error = failed(raised.value)
    assert (error.code, error.info.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert error.retry_after is not None


@given(sequence=st.integers(0, 2**64 - 1), numbers=st.lists(st.integers(0, 5), max_size=5))
def test_a_batch_is_read_with_the_bytes_of_its_events(sequence: int, numbers: list[int]) -> None:
    events = [event(number) for number in numbers]
    frame = read_batch(BatchSendRequest(sequence=sequence, events=events).SerializeToString(deterministic=True))
    assert frame.sequence == sequence
    assert list(frame.events) == [one.SerializeToString(deterministic=True) for one in events]
