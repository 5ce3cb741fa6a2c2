"""EventService over real sockets: what every kind of request is answered with."""

import asyncio
import math
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from pointillist_destination.v1 import event_pb2
from pointillist_destination.v1.event_service_pb2 import (
    OUTCOME_ACCEPTED,
    OUTCOME_DELIVERED,
    OUTCOME_DUPLICATE,
    OUTCOME_FILTERED,
    OUTCOME_VALIDATED,
    IdentifyRequest,
    SendOptions,
    TrackRequest,
)
from service.sandbox.server import Behaviour
from tests.support.events import identify, track
from tests.support.servers import NAME, Serving, failed, failure, serving
from tests.support.waiting import until

DEEP = 60  # levels of objects that Python can build and protobuf does not read


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


def nested(levels: int) -> Any:
    value: Any = {"a": "x"}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


async def raw_failure(server: Serving, method: str, request: bytes) -> grpc.aio.AioRpcError:
    """How a request of any bytes fails."""
    call = server.channel.unary_unary(f"/{NAME}/{method}", lambda data: data, lambda data: data)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(request)
    return raised.value


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field as it stands on the wire."""
    size = len(content)
    length = b""
    while size > 0x7F:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return bytes((number << 3 | 2,)) + length + bytes((size,)) + content


# -- what is accepted


async def test_a_track_is_accepted_and_delivered(server: Serving) -> None:
    answer = await server.events.Track(TrackRequest(track=track()))
    assert (answer.receipt.message_id, answer.receipt.outcome) == ("m-1", OUTCOME_ACCEPTED)
    assert not answer.receipt.HasField("record")
    await until(lambda: server.delivered == ["m-1"])
    record = server.sandbox.records[0].record
    assert (record["eventType"], record["actors"]) == ("Order Completed", {"Customer": {"userId": "u-1"}})
    assert record["numbers"] == {"revenue": "25.5"}


async def test_an_identify_is_accepted_and_delivered(server: Serving) -> None:
    answer = await server.events.Identify(IdentifyRequest(identify=identify()))
    assert (answer.receipt.message_id, answer.receipt.outcome) == ("i-1", OUTCOME_ACCEPTED)
    await until(lambda: server.delivered == ["i-1"])
    assert server.sandbox.records[0].record["labels"] == {"plan": "premium"}


async def test_an_event_without_a_message_id_gets_a_uuid_of_version_7(server: Serving) -> None:
    answer = await server.events.Track(TrackRequest(track=track(message_id="")))
    assert uuid.UUID(answer.receipt.message_id).version == 7
    await until(lambda: server.delivered == [answer.receipt.message_id])


async def test_the_same_message_id_is_a_duplicate_and_sent_once(server: Serving) -> None:
    await server.events.Track(TrackRequest(track=track()))
    again = await server.events.Track(TrackRequest(track=track(event="Another")))
    other = await server.events.Identify(IdentifyRequest(identify=identify(message_id="m-1")))
    assert (again.receipt.outcome, other.receipt.outcome) == (OUTCOME_DUPLICATE, OUTCOME_DUPLICATE)
    await server.events.Track(TrackRequest(track=track(2)))
    await until(lambda: len(server.delivered) == 2)
    assert sorted(server.delivered) == ["m-1", "m-2"]


@pytest.mark.parametrize("integrations", [{"All": False}, {"Pointillist": False}])
async def test_an_event_that_the_integrations_object_keeps_back_is_filtered(
    server: Serving, integrations: dict[str, bool]
) -> None:
    given = TrackRequest(track=track(integrations=integrations))
    assert (await server.events.Track(given)).receipt.outcome == OUTCOME_FILTERED

    # and kept nowhere, so that its message_id is still free
    given.track.ClearField("integrations")
    assert (await server.events.Track(given)).receipt.outcome == OUTCOME_ACCEPTED


async def test_message_ids_of_any_characters_are_kept_apart_and_delivered(server: Serving) -> None:
    given = [
        "a",
        "a ",
        " a",
        "a\r",
        "a\n",
        "a\r\n",
        "a\x00",
        "a\x00b",
        "é",
        "e\u0301",
        "日本",
        "x" * 100,
        "😀" * 100,
        "%61",
    ]
    for message_id in given:
        answer = await server.events.Track(TrackRequest(track=track(message_id=message_id)))
        assert (answer.receipt.message_id, answer.receipt.outcome) == (message_id, OUTCOME_ACCEPTED)
    await until(lambda: len(server.delivered) == len(given))
    assert sorted(server.delivered) == sorted(given)


# -- options


async def test_validate_only_checks_and_keeps_nothing(server: Serving) -> None:
    options = SendOptions(validate_only=True)
    answer = await server.events.Track(TrackRequest(track=track(), options=options))
    assert answer.receipt.outcome == OUTCOME_VALIDATED
    filtered = TrackRequest(track=track(integrations={"All": False}), options=options)
    assert (await server.events.Track(filtered)).receipt.outcome == OUTCOME_FILTERED
    bad = await failure(server.events.Track(TrackRequest(track=track(event=""), options=options)))
    assert bad.violations.keys() == {"track.event"}

    assert (await server.events.Track(TrackRequest(track=track()))).receipt.outcome == OUTCOME_ACCEPTED
    await until(lambda: server.sandbox.requests == 1)


@shares_its_server
async def test_validate_only_does_not_go_with_wait_for_delivery(shared: Serving) -> None:
    options = SendOptions(validate_only=True, wait_for_delivery=True)
    refused = await failure(shared.events.Track(TrackRequest(track=track(event=""), options=options)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.violations.keys() == {"options.wait_for_delivery", "track.event"}


async def test_include_record_answers_with_the_record_that_is_sent(server: Serving) -> None:
    options = SendOptions(include_record=True, wait_for_delivery=True)
    answer = await server.events.Track(TrackRequest(track=track(), options=options))
    shown, sent = answer.receipt.record, server.sandbox.records[0].record
    assert (shown.event_source, shown.event_type, shown.event_time) == (
        sent["eventSource"],
        sent["eventType"],
        sent["eventTime"],
    )
    assert (dict(shown.labels), dict(shown.numbers)) == (sent["labels"], sent["numbers"])
    assert json_format.MessageToDict(shown.actors) == sent["actors"]


async def test_include_record_goes_with_validate_only_and_with_a_filtered_event(server: Serving) -> None:
    options = SendOptions(include_record=True, validate_only=True)
    for integrations in ({}, {"All": False}):
        given = IdentifyRequest(identify=identify(integrations=integrations), options=options)
        assert (await server.events.Identify(given)).receipt.record.event_type == "identify"


# -- waiting for the delivery


async def test_who_waits_for_the_delivery_is_answered_once_pointillist_took_it(server: Serving) -> None:
    answer = await server.events.Track(TrackRequest(track=track(), options=SendOptions(wait_for_delivery=True)))
    assert answer.receipt.outcome == OUTCOME_DELIVERED
    assert server.delivered == ["m-1"]


async def test_who_waits_for_the_delivery_of_a_duplicate_waits_for_the_event_that_waits(server: Serving) -> None:
    # given
    server.sandbox.behaviour = Behaviour({"503": 1})
    await server.events.Track(TrackRequest(track=track()))

    # when
    request = TrackRequest(track=track(), options=SendOptions(wait_for_delivery=True))
    repeats = [asyncio.ensure_future(server.events.Track(request)) for _ in range(3)]
    await until(lambda: server.sandbox.requests > 2)
    assert not any(repeat.done() for repeat in repeats)
    server.sandbox.behaviour = Behaviour()

    # then
    assert [(await repeat).receipt.outcome for repeat in repeats] == [OUTCOME_DELIVERED] * 3
    assert server.delivered == ["m-1"]


async def test_who_waits_for_the_delivery_hears_that_pointillist_refused_it_for_good(server: Serving) -> None:
    server.sandbox.behaviour = Behaviour({"400": 1})
    options = SendOptions(wait_for_delivery=True)
    refused = await failure(server.events.Track(TrackRequest(track=track(), options=options)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.info.metadata == {"message_id": "m-1", "reason": "400", "status": "400"}
    assert refused.retry_after is None


async def test_an_event_that_is_not_delivered_before_the_deadline_is_delivered_later(server: Serving) -> None:
    # given
    server.sandbox.behaviour = Behaviour({"503": 1})
    options = SendOptions(wait_for_delivery=True)

    # when
    late = await failure(server.events.Track(TrackRequest(track=track(), options=options), timeout=0.3))

    # then
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    server.sandbox.behaviour = Behaviour()
    await until(lambda: server.delivered == ["m-1"])


async def test_an_event_that_is_retried_is_delivered_to_who_waits(server: Serving) -> None:
    server.sandbox.behaviour = Behaviour({"503": 1})
    given = TrackRequest(track=track(), options=SendOptions(wait_for_delivery=True))
    call = asyncio.ensure_future(server.events.Track(given))
    await until(lambda: server.sandbox.requests)
    server.sandbox.behaviour = Behaviour()
    assert (await call).receipt.outcome == OUTCOME_DELIVERED


async def test_a_redirect_is_not_followed(server: Serving) -> None:
    server.sandbox.behaviour = Behaviour({"302": 1})
    await server.events.Track(TrackRequest(track=track()))
    await until(lambda: server.sandbox.requests)
    assert server.sandbox.answers.keys() == {"302"}

    server.sandbox.behaviour = Behaviour()
    await until(lambda: server.delivered == ["m-1"])


# -- what is refused


@shares_its_server
async def test_every_fault_of_an_event_is_told_at_once_with_its_path(shared: Serving) -> None:
    message = event_pb2.Track(
        message_id="x" * 101,
        timestamp=Timestamp(seconds=253402300800, nanos=-1),
    )
    message.properties.update({"price": math.nan, "list": [1, {"b": math.inf}]})
    message.context.location.latitude = -math.inf
    refused = await failure(shared.events.Track(TrackRequest(track=message)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.violations.keys() == {
        "track.user_id",
        "track.event",
        "track.message_id",
        "track.properties.price",
        "track.properties.list[1].b",
        "track.context.location.latitude",
        "track.timestamp.seconds",
        "track.timestamp.nanos",
    }
    assert refused.info.reason
    assert refused.retry_after is None


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (TrackRequest(track=track(properties={"a": "x" * 33_000})), "track"),
        (TrackRequest(), "track"),
        (TrackRequest(track=event_pb2.Track(event="e")), "track.user_id"),
    ],
)
@shares_its_server
async def test_a_bad_track_is_refused(shared: Serving, request_: TrackRequest, path: str) -> None:
    refused = await failure(shared.events.Track(request_))
    assert (refused.code, set(refused.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {path})
    assert refused.info.reason


@shares_its_server
async def test_a_bad_identify_is_refused(shared: Serving) -> None:
    assert (await failure(shared.events.Identify(IdentifyRequest()))).violations.keys() == {"identify"}
    bad = await failure(shared.events.Identify(IdentifyRequest(identify=identify(traits={"a": math.nan}))))
    assert bad.violations.keys() == {"identify.traits.a"}


def deep_request(levels: int) -> bytes:
    """A TrackRequest whose properties nest so deep, written by hand, because protobuf does not write it."""
    numbers = event_pb2.Track.DESCRIPTOR.fields_by_name
    struct = b""
    for _ in range(levels):
        struct = field(1, field(1, b"a") + (field(2, field(5, struct)) if struct else field(2, field(3, b"x"))))
    body = field(numbers["user_id"].number, b"u") + field(numbers["event"].number, b"Order")
    return field(1, body + field(numbers["properties"].number, struct))


@shares_its_server
async def test_properties_nested_33_levels_deep_are_refused(shared: Serving) -> None:
    for levels in (33, DEEP, 200):
        error = failed(await raw_failure(shared, "Track", deep_request(levels)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.violations
        assert error.info.reason


async def test_properties_nested_32_levels_deep_are_accepted_and_delivered(server: Serving) -> None:
    given = TrackRequest(track=track(properties=nested(32)))
    assert (await server.events.Track(given)).receipt.outcome == OUTCOME_ACCEPTED
    await until(lambda: server.delivered == ["m-1"])


@pytest.mark.parametrize("method", ["Track", "Identify"])
@pytest.mark.parametrize("request_", [b"\xff", b"\x0a\x05abc", field(1, field(1, b"\xff\xfe")), b"\x00\x00\x00\x00"])
@shares_its_server
async def test_bytes_that_do_not_parse_are_an_invalid_argument(shared: Serving, method: str, request_: bytes) -> None:
    error = failed(await raw_failure(shared, method, request_))
    assert (error.code, set(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {""})
    assert error.info.reason


@shares_its_server
async def test_a_request_over_4_mib_gets_grpcs_own_answer(shared: Serving) -> None:
    error = await raw_failure(shared, "Track", bytes(4 * 1024 * 1024 + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@shares_its_server
async def test_a_method_that_does_not_exist_is_unimplemented(shared: Serving) -> None:
    assert (await raw_failure(shared, "Page", b"")).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_full_outbox_is_unavailable_with_a_time_to_try_again(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_OUTBOX_MAX_EVENTS": "3"}) as server:
        # given
        server.sandbox.behaviour = Behaviour({"503": 1})
        for number in range(3):
            await server.events.Track(TrackRequest(track=track(number)))

        # when
        refused = await failure(server.events.Track(TrackRequest(track=track(3))))

        # then
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert refused.retry_after is not None
        assert refused.retry_after > 0
        assert refused.info.reason == "OUTBOX_FULL"

        # and it recovers by itself
        server.sandbox.behaviour = Behaviour()
        await until(lambda: len(server.delivered) == 3)
        answer = await server.events.Track(TrackRequest(track=track(3)))
        assert answer.receipt.outcome == OUTCOME_ACCEPTED
