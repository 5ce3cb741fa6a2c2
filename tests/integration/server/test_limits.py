"""What no caller may outgrow: the room of a status, of an answer, and of answers that nobody reads."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from pointillist_destination.v1 import event_pb2
from pointillist_destination.v1.event_service_pb2 import (
    OUTCOME_ACCEPTED,
    BatchSendRequest,
    BatchSendResponse,
    SendOptions,
    TrackRequest,
)
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.events.batch_frame import count_events
from service.events.validation import Violation
from service.intake.byte_budget import ByteBudget, OwnerBudget, StreamBudget
from service.intake.token_bucket import TokenBucket
from service.outbox.base import Refusal
from service.sandbox.server import Behaviour
from service.server import status
from service.server.auth import Admission
from service.server.request_reading import Context
from service.server.rpc import NOBODY
from service.server.status import StatusError, cut
from service.server.stream import Stream
from service.telemetry.grpc_metrics import GrpcMetrics
from tests.support.events import event, track
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server
from tests.support.servers import Serving, failure, serving
from tests.support.waiting import DEADLINE, turns

MIB = 1024 * 1024


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as server:
        yield server


shares_its_server = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    """One server for the tests that leave nothing behind in it."""
    async with serving(tmp_path_factory.mktemp("shared")) as shared:
        yield shared


def not_finite(key: str, count: int) -> event_pb2.Track:
    """A track with a property that holds so many NaNs."""
    return track(properties={key: [math.nan] * count})


# -- one status


@given(text=st.text(), most_bytes=st.integers(3, 100))
def test_a_text_is_cut_to_so_many_bytes_and_left_alone_where_it_has_no_more(text: str, most_bytes: int) -> None:
    short = cut(text, most_bytes)
    assert len(short.encode()) <= most_bytes
    if len(text.encode()) <= most_bytes:
        assert short == text
    else:
        assert short.endswith("…")
        assert text.startswith(short[:-1])


@given(
    violations=st.lists(
        st.builds(Violation, st.text(max_size=200) | st.just("😀" * 200), st.text() | st.just("é" * 9_999)),
        min_size=1,
        max_size=22,
    )
)
def test_the_status_of_any_faults_is_small_enough_for_a_header(violations: list[Violation]) -> None:
    told = status.invalid(violations).status
    assert told.ByteSize() <= status.MAX_STATUS
    assert len(told.message.encode()) <= status.MAX_MESSAGE


def test_a_message_tells_how_many_faults_there_are_and_the_first() -> None:
    one, other = Violation("track.event", "is empty"), Violation("track.user_id", "is empty")
    assert status.invalid([one]).status.message == "track.event is empty"
    assert status.invalid([one, other]).status.message == "2 violations; the first: track.event is empty"
    assert status.invalid([one] * 21).status.message.startswith("more than 20 violations; the first: ")


@pytest.mark.parametrize("count", [20, 70, 1000])
@pytest.mark.parametrize("key", ["k", "k" * 200, "k" * 15_000, "あ", "あ" * 200, "😀" * 3_000], ids=len)
@shares_its_server
async def test_many_faults_with_long_paths_reach_an_ordinary_client(shared: Serving, key: str, count: int) -> None:
    refused = await failure(shared.events.Track(TrackRequest(track=not_finite(key, count))))

    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest()
    assert refused.detail(bad_request) is not None
    assert bad_request.field_violations[0].field.startswith(f"track.properties.{key[:150]}")
    assert "20 violations" in refused.status.message


@shares_its_server
async def test_an_event_of_many_megabytes_with_thousands_of_faults_is_one_fault(shared: Serving) -> None:
    refused = await failure(shared.events.Track(TrackRequest(track=not_finite("k" * MIB, 5_000))))

    assert refused.violations.keys() == {"track"}


@pytest.mark.parametrize("detail", ["x" * 1_000, "あ" * 1_000, "😀" * 1_000], ids=["ascii", "kana", "emoji"])
def test_what_pointillist_said_is_cut_to_what_a_header_holds(detail: str) -> None:
    told = status.refused_by_pointillist("😀" * 100, Refusal("400", 400, detail)).status

    assert len(told.message.encode()) <= status.MAX_MESSAGE
    assert told.message.endswith("it is a dead letter now")
    assert told.ByteSize() <= status.MAX_STATUS


async def test_who_waits_hears_of_a_refusal_in_many_words_of_any_script(server: Serving) -> None:
    # given an event with the longest id there is
    server.sandbox.behaviour = Behaviour({"400": 1})
    given = TrackRequest(track=track(message_id="😀" * 100), options=SendOptions(wait_for_delivery=True))

    # when, then
    refused = await failure(server.events.Track(given))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.info.metadata["message_id"] == "😀" * 100


# -- one answer


BAD_TIMES = {
    name: Timestamp(seconds=10**12, nanos=-1) for name in ("timestamp", "sent_at", "received_at", "original_timestamp")
}
WORST = {
    "empty": (event_pb2.Event(), 10_000),
    "many small faults": (
        event_pb2.Event(track=event_pb2.Track(message_id="x" * 101, **cast("Any", BAD_TIMES))),
        9_999,
    ),
    "long ids": (event_pb2.Event(track=event_pb2.Track(message_id="😀" * 99)), 10_000),
    "not finite": (event_pb2.Event(track=not_finite("あ" * 50, 15)), 9_000),
}


@pytest.mark.parametrize("kind", WORST)
@shares_its_server
async def test_an_answer_to_nothing_but_bad_events_is_one_that_clients_read(shared: Serving, kind: str) -> None:
    # given as many of them as a request of 4 MiB holds, and a good one
    bad, count = WORST[kind]
    count = min(count - 1, 4_190_000 // (bad.ByteSize() + 4))

    # when
    call = shared.events.BatchSend()
    await call.write(BatchSendRequest(sequence=1, events=[event(message_id=kind), *[bad] * count]))
    await call.done_writing()
    [answer] = [one async for one in call]

    # then
    assert isinstance(answer, BatchSendResponse)
    assert answer.ByteSize() < 3 * MIB
    assert (answer.accepted, len(answer.rejections)) == (1, count)
    assert answer.rejections[0].status.details
    for index, rejection in enumerate(answer.rejections):
        assert (rejection.index, rejection.status.code) == (index + 1, code_pb2.INVALID_ARGUMENT)
        assert rejection.status.message


@shares_its_server
async def test_a_rejection_cuts_a_message_id_that_is_as_large_as_a_request(shared: Serving) -> None:
    call = shared.events.BatchSend()
    await call.write(BatchSendRequest(events=[event(1, message_id="x" * 4_000_000)]))
    await call.done_writing()
    [answer] = [one async for one in call]
    [rejection] = answer.rejections
    assert rejection.message_id == "x" * 397 + "…"


# -- answers that nobody reads


async def test_an_answer_counts_until_it_is_written() -> None:
    # given a budget of 100 bytes, of which a stream holds an answer of 60
    shared = ByteBudget(100)
    budget = StreamBudget(shared, 50, OwnerBudget(100, 100))
    assert budget.hold_now(10)
    budget.answer(60)
    budget.let_go(10)

    # then neither it nor another stream reads more than there is room for
    assert not budget.may_go_on()
    assert not shared.take_now(50)

    # when it is written
    reading = asyncio.create_task(budget.until_may_go_on())
    await turns()
    assert not reading.done()
    budget.written(60)

    # then both do
    await reading
    assert shared.take_now(100)


async def test_a_stream_that_ends_gives_all_back_and_only_once() -> None:
    shared = ByteBudget(100)
    budget = StreamBudget(shared, 50, OwnerBudget(100, 100))
    assert budget.hold_now(70)
    budget.answer(40)

    budget.close()
    budget.let_go(70)
    budget.written(40)

    assert shared.take_now(100)
    assert not shared.take_now(1)


async def test_who_no_longer_waits_for_room_holds_up_nobody() -> None:
    # given one that holds, one that wants too much, and one behind it that wants little
    shared = ByteBudget(100)
    assert shared.take_now(60)
    much, little = asyncio.create_task(shared.take(50)), asyncio.create_task(shared.take(40))
    await turns()
    assert not little.done()

    # when
    much.cancel()

    # then
    await little


def memory_of(process: asyncio.subprocess.Process) -> int:
    """MiB of memory that a process has now."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) // 1024


def work_of(process: asyncio.subprocess.Process) -> list[str]:
    """The processor time that a process has used, in user and kernel mode."""
    return Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]


async def until_at_rest(process: asyncio.subprocess.Process) -> None:
    """Wait until a process does next to nothing any more."""
    async with asyncio.timeout(DEADLINE):
        before: list[str] = []
        while (now := work_of(process)) != before:
            before = now
            await asyncio.sleep(0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("streams", "most"),
    [
        (5, 42),  # MiB more than before; without a bound the same streams come to about 69, with one to about 15
        pytest.param(30, 250, marks=pytest.mark.long),  # to about 400, with one to about 80
    ],
)
async def test_callers_that_never_read_their_answers_fill_no_memory_and_hold_up_nobody(
    tmp_path: Path, streams: int, most: int
) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        before = memory_of(server.process)
        own = (("grpc.use_local_subchannel_pool", 1),)
        async with (
            grpc.aio.insecure_channel(server.address, options=own) as theirs,
            grpc.aio.insecure_channel(server.address, options=own) as ours,
        ):
            # given streams that write batches with large answers, and never read
            batch = BatchSendRequest(events=[event_pb2.Event()] * 5_000)
            calls = [EventServiceStub(theirs).BatchSend() for _ in range(streams)]

            async def write(call: Any) -> None:
                for _ in range(18):
                    await call.write(batch)

            writing = [asyncio.create_task(write(call)) for call in calls]

            # when the server reads no more of them
            await until_at_rest(server.process)

            # then
            assert memory_of(server.process) - before < most

            # and others are served
            answer = await EventServiceStub(ours).Track(TrackRequest(track=track(1)), timeout=DEADLINE)
            assert answer.receipt.outcome == OUTCOME_ACCEPTED
            stream = EventServiceStub(ours).BatchSend(timeout=DEADLINE)
            await stream.write(BatchSendRequest(events=[event(2)] * 100))
            others = await stream.read()
            assert isinstance(others, BatchSendResponse)
            assert others.accepted == 1

            for call, task in zip(calls, writing, strict=True):
                task.cancel()
                call.cancel()
            await asyncio.gather(*writing, return_exceptions=True)


# -- streams on which nothing comes


class Silent:
    """gRPC's side of a stream on which nothing comes."""

    async def read(self) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


class Talking:
    """gRPC's side of a stream on which there is always another message."""

    async def read(self) -> bytes:
        return BatchSendRequest(events=[event(1)]).SerializeToString()


def reading(context: object, admission: Admission = NOBODY, *, idle_most: float) -> Stream:
    """A stream as its handler reads it."""
    meter = GrpcMetrics().meter("bidi_stream", "service", "method")
    return Stream(cast("Context", context), meter, admission, count_events, idle_most=idle_most)


async def test_a_stream_on_which_nothing_comes_is_ended() -> None:
    with pytest.raises(StatusError) as caught:
        await reading(Silent(), idle_most=0.0).read()
    assert (caught.value.status.code, caught.value.retry_after) == (code_pb2.UNAVAILABLE, 0.0)


async def test_a_stream_that_is_slowed_for_its_rate_is_not_idle_meanwhile() -> None:
    # given a caller that owes more time than a stream may be idle
    loop = asyncio.get_running_loop()
    bucket = TokenBucket(100.0, 1.0, loop.time)
    bucket.charge(21)
    assert bucket.debt() > 0.1

    # when, then
    assert await reading(Talking(), Admission("checkout", bucket), idle_most=0.05).read()
