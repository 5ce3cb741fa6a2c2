"""DeadLetterService over a socket: what is shown, what is refused, and what a replay does."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from pointillist_destination.v1 import dead_letter_service_pb2 as messages
from pointillist_destination.v1 import (
    dead_letter_service_pb2_grpc,
    event_pb2,
)
from service.config.address import Listen
from service.mapping.mapping_file import load_mapping
from service.outbox.base import Entry, Refusal
from service.outbox.capacity import Bounds
from service.outbox.sqlite.outbox import SqliteOutbox
from service.server import dead_letter_service
from service.server.calls import Calls
from service.server.dead_letter_service import DeadLetterService
from service.server.grpc_server import listen, make_server
from service.server.health import Health
from tests.support.clock import START, HandClock
from tests.support.events import ACCEPTED_AT, entries, entry, event, identify
from tests.support.outboxes import bury, opened

INVALID_REQUEST = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")

Stub = Any  # the generated stub's methods have no types of their own for grpc.aio


@asynccontextmanager
async def serving(outbox: SqliteOutbox) -> AsyncIterator[grpc.aio.Channel]:
    """Serve an outbox's dead letters on a free port; gives a channel to it."""
    mapping = load_mapping(None)
    service = DeadLetterService(dead_letters=outbox.dead_letters, mapping=lambda: mapping)
    health = Health(why_dead=lambda: None, why_not_ready=lambda: None, is_getting_through=lambda: True)
    server = make_server([dead_letter_service.handlers(service, Calls(most=100))], [], health, reflect=False)
    address = listen(server, "TEST", Listen("127.0.0.1", 0))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(str(address)) as channel:
            yield channel
    finally:
        await server.stop(0)


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqliteOutbox]:
    """An outbox on a clock that stands still, until a test moves it by `clock`."""
    async with opened(tmp_path / "outbox.db", HandClock()) as opened_outbox:
        yield opened_outbox


@pytest.fixture
async def channel(outbox: SqliteOutbox) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server with the outbox's dead letters."""
    async with serving(outbox) as made:
        yield made


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Stub:
    """A stub for the outbox's dead letters."""
    return dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)


async def listed(stub: Stub, page_size: int = 0, **filters: Any) -> list[str]:
    """The message ids of every dead letter that a filter finds, page by page."""
    found, token = [], ""
    while True:
        request = messages.ListRequest(
            filter=messages.DeadLetterFilter(**filters), page_size=page_size, page_token=token
        )
        page = await stub.List(request)
        found += [letter.message_id for letter in page.dead_letters]
        token = page.next_page_token
        if not token:
            return found


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, set[str]]:
    """The code and the reason with which a call is refused, and the fields that it complains of."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    trailing = dict(cast("Any", raised.value.trailing_metadata()))
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    fields: set[str] = set()
    info = error_details_pb2.ErrorInfo()
    told = []
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields |= {violation.field for violation in bad.field_violations}
        if detail.Unpack(info):
            told.append(info.domain)
    assert told == ["pointillist-destination"]
    return raised.value.code(), info.reason, fields


def at(seconds: float) -> Timestamp:
    """A moment on the tests' clock."""
    return Timestamp(seconds=int(START + seconds))


# -- List


async def test_dead_letters_are_listed_oldest_first(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, entries(5))

    assert await listed(stub) == [f"m-{number}" for number in range(5)]


async def test_a_dead_letter_is_shown_with_all_that_is_known_of_it(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, [entry(1)], Refusal("422", 422, "what is this?"))

    [letter] = (await stub.List(messages.ListRequest())).dead_letters

    assert letter == messages.DeadLetter(
        id=letter.id,
        message_id="m-1",
        event=event(1),
        reason="422",
        status=422,
        detail="what is this?",
        attempts=1,
        accepted_at=Timestamp(seconds=ACCEPTED_AT // 1000),
        first_attempt_at=at(0),
        last_attempt_at=at(0),
    )
    assert letter.id > 0


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 8, 1000])
async def test_pages_put_end_to_end_are_the_whole_list(outbox: SqliteOutbox, stub: Stub, page_size: int) -> None:
    await bury(outbox, entries(7))

    assert await listed(stub, page_size) == [f"m-{number}" for number in range(7)]


async def test_a_page_has_a_hundred_dead_letters_where_nothing_else_is_asked_for(
    outbox: SqliteOutbox, stub: Stub
) -> None:
    await bury(outbox, entries(101))

    page = await stub.List(messages.ListRequest())

    assert len(page.dead_letters) == 100
    assert page.next_page_token


async def test_a_page_of_large_events_is_cut_so_that_clients_can_read_it(outbox: SqliteOutbox, stub: Stub) -> None:
    # given: 6 MiB of events
    large = [
        Entry(f"m-{n}", event(n, properties={"text": "x" * 30_000}).SerializeToString(), ACCEPTED_AT)
        for n in range(200)
    ]
    await bury(outbox, large)

    # when
    page = await stub.List(messages.ListRequest(page_size=1000))

    # then
    assert 0 < page.ByteSize() < 4 * 1024 * 1024
    assert await listed(stub, 1000) == [f"m-{n}" for n in range(200)]


async def test_a_page_is_cut_for_the_reasons_and_the_ids_of_its_letters_too(outbox: SqliteOutbox, stub: Stub) -> None:
    # given: small events, each with 3 kB of Pointillist's words and an id of 400 bytes
    ids = [f"{n:04}" + "😀" * 96 for n in range(1000)]
    text = {"text": "x" * 1_000}
    small = [Entry(id_, event(1, message_id=id_, properties=text).SerializeToString(), ACCEPTED_AT) for id_ in ids]
    await bury(outbox, small, Refusal("400", 400, "あ" * 1000))

    # when
    page = await stub.List(messages.ListRequest(page_size=1000))

    # then
    assert 0 < page.ByteSize() < 3 * 1024 * 1024
    assert await listed(stub, 1000) == ids


async def test_a_letter_that_comes_while_pages_are_read_is_on_the_last_one(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, entries(3))
    first = await stub.List(messages.ListRequest(page_size=2))

    await bury(outbox, [entry(9)])

    second = await stub.List(messages.ListRequest(page_token=first.next_page_token))
    assert [letter.message_id for letter in second.dead_letters] == ["m-2", "m-9"]


@pytest.fixture
async def mixed(tmp_path: Path) -> AsyncIterator[Stub]:
    """A stub for dead letters of several kinds: one a second."""
    clock = HandClock()
    who = event_pb2.Event(identify=identify(3, user_id="", anonymous_id="a-3"))
    async with opened(tmp_path / "mixed.db", clock) as outbox:
        for buried, reason in (
            (entry(1), "400"),
            (Entry("m-2", event(2, event="Order Refunded").SerializeToString(), ACCEPTED_AT), "422"),
            (Entry("i-3", who.SerializeToString(), ACCEPTED_AT), "max_age"),
            (entry(4), "400"),
        ):
            await bury(outbox, [buried], Refusal(reason, None if reason == "max_age" else int(reason), ""))
            clock.move(1.0)
        async with serving(outbox) as channel:
            yield dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"reason": "400"}, ["m-1", "m-4"]),
        ({"reason": "max_age"}, ["i-3"]),
        ({"event_type": "Order Refunded"}, ["m-2"]),
        ({"event_type": "identify"}, ["i-3"]),
        ({"user_id": "u-2"}, ["m-2"]),
        ({"user_id": "a-3"}, ["i-3"]),
        ({"since": at(1)}, ["m-2", "i-3", "m-4"]),
        ({"until": at(1)}, ["m-1"]),
        ({"since": at(1), "until": at(3)}, ["m-2", "i-3"]),
        ({"ids": [1, 3, 99]}, ["m-1", "i-3"]),
        ({"ids": [2**64 - 1]}, []),
        ({"reason": "400", "user_id": "u-4"}, ["m-4"]),
        ({"reason": "400", "user_id": "u-2"}, []),
        ({"reason": "'; DROP TABLE dead_letter; --"}, []),
        ({}, ["m-1", "m-2", "i-3", "m-4"]),
    ],
)
async def test_a_filter_finds_what_it_says(mixed: Stub, filters: dict[str, Any], expected: list[str]) -> None:
    assert await listed(mixed, **filters) == expected
    assert await listed(mixed, 1, **filters) == expected


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (messages.ListRequest(page_size=1001), "page_size"),
        (messages.ListRequest(page_size=2**32 - 1), "page_size"),
        (messages.ListRequest(page_token="next"), "page_token"),
        (messages.ListRequest(page_token="-1"), "page_token"),
        (messages.ListRequest(page_token="²"), "page_token"),
        (messages.ListRequest(page_token=str(2**64)), "page_token"),
        (messages.ListRequest(page_token="9" * 10_000), "page_token"),
        (
            messages.ListRequest(filter=messages.DeadLetterFilter(since=Timestamp(seconds=2**62))),
            "filter.since.seconds",
        ),
        (messages.ListRequest(filter=messages.DeadLetterFilter(until=Timestamp(nanos=-1))), "filter.until.nanos"),
        (messages.ListRequest(filter=messages.DeadLetterFilter(ids=range(10_001))), "filter.ids"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_by_the_field(
    stub: Stub, request_: messages.ListRequest, field: str
) -> None:
    assert await refused(stub.List(request_)) == (*INVALID_REQUEST, {field})


# -- Get


async def test_one_dead_letter_is_shown_with_the_record_that_is_made_of_it_now(
    outbox: SqliteOutbox, stub: Stub
) -> None:
    await bury(outbox, [entry(1)])
    [letter] = (await stub.List(messages.ListRequest())).dead_letters

    shown = await stub.Get(messages.GetRequest(id=letter.id))

    assert shown.dead_letter == letter
    assert shown.record.event_type == "Order Completed"
    assert dict(shown.record.numbers) == {"revenue": "25.5"}


@pytest.mark.parametrize("id_", [0, 7, 2**63, 2**64 - 1])
async def test_a_dead_letter_that_is_not_there_is_not_found(stub: Stub, id_: int) -> None:
    gone = (grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND", set[str]())
    assert await refused(stub.Get(messages.GetRequest(id=id_))) == gone


# -- Replay and Delete


@pytest.mark.parametrize("method", ["Replay", "Delete"])
async def test_nothing_is_meant_by_accident(outbox: SqliteOutbox, stub: Stub, method: str) -> None:
    await bury(outbox, entries(3))
    request = {"Replay": messages.ReplayRequest, "Delete": messages.DeleteRequest}[method]
    call = getattr(stub, method)

    assert await refused(call(request())) == (*INVALID_REQUEST, {"filter"})
    assert await refused(call(request(filter=messages.DeadLetterFilter()))) == (*INVALID_REQUEST, {"filter"})
    both = request(filter=messages.DeadLetterFilter(reason="400"), all=True)
    assert await refused(call(both)) == (*INVALID_REQUEST, {"all"})
    assert len(await listed(stub)) == 3


async def test_some_dead_letters_are_replayed_and_keep_their_message_ids(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, entries(3))
    first, _, third = (await stub.List(messages.ListRequest())).dead_letters

    answer = await stub.Replay(
        messages.ReplayRequest(filter=messages.DeadLetterFilter(ids=[first.id, third.id, third.id]))
    )

    assert answer.replayed == 2
    assert await listed(stub) == ["m-1"]
    waiting = await outbox.fetch(10)
    assert [(event.message_id, event.attempts) for event in waiting] == [("m-0", 0), ("m-2", 0)]


async def test_all_dead_letters_are_replayed_at_once_however_many_there_are(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, entries(1_234))

    answer = await stub.Replay(messages.ReplayRequest(all=True))

    assert answer.replayed == outbox.stats().events == 1_234
    assert outbox.stats().dead_letters == 0


async def test_a_filter_that_finds_nothing_replays_nothing(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, entries(3))

    answer = await stub.Replay(messages.ReplayRequest(filter=messages.DeadLetterFilter(reason="413")))

    assert answer.replayed == 0
    assert outbox.stats().dead_letters == 3


async def test_a_replay_into_a_full_outbox_is_put_off_with_a_time(tmp_path: Path) -> None:
    full = opened(tmp_path / "full.db", HandClock(), bounds=Bounds(events=2))
    async with full as outbox, serving(outbox) as channel:
        stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
        await bury(outbox, [entry(1)])
        await outbox.put(entries(2, 10))

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Replay(messages.ReplayRequest(all=True))

        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in dict(cast("Any", raised.value.trailing_metadata()))
        assert outbox.stats().dead_letters == 1


async def test_deleted_dead_letters_are_gone_and_the_others_are_not(outbox: SqliteOutbox, stub: Stub) -> None:
    await bury(outbox, entries(3))

    some = await stub.Delete(messages.DeleteRequest(filter=messages.DeadLetterFilter(user_id="u-1")))
    left = await listed(stub)
    rest = await stub.Delete(messages.DeleteRequest(all=True))

    assert (some.deleted, left, rest.deleted) == (1, ["m-0", "m-2"], 2)
    assert await listed(stub) == []
    assert await outbox.fetch(10) == []


@pytest.mark.parametrize("method", ["List", "Get", "Replay", "Delete"])
async def test_bytes_that_do_not_parse_are_refused_as_such(channel: grpc.aio.Channel, method: str) -> None:
    call: Stub = channel.unary_unary(f"/{dead_letter_service.SERVICE_NAME}/{method}")

    code, reason, _ = await refused(call(b"\x0a\xff"))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NOT_PARSABLE")
