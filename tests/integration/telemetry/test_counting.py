"""What gRPC answers by itself, and what is refused, is counted and logged without a caller's content."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from prometheus_client import CollectorRegistry

from pointillist_destination.v1.dead_letter_service_pb2 import ListRequest
from pointillist_destination.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, SendOptions, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.behaviour import Behaviour
from service.telemetry.grpc_metrics import MAX_FIELDS, GrpcMetrics
from tests.support.events import event, track
from tests.support.raw_http2 import message, raw_connection
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for

SERVICE = "pointillist_destination.v1.EventService"
TOKEN = "a-token-of-checkout"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
LARGE = 4 * 1024 * 1024 + 1
KEY = "cardNumber"
DEADLINES = 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server with a caller, in front of a Pointillist that fails."""
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[callers.checkout]\nsha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n')
    async with running_sandbox(Behaviour({"503": 1})) as sandbox:
        running = await ServerProcess.start(settings_for(tmp_path / "outbox.db", sandbox, callers_file=str(callers)))
        try:
            yield running
        finally:
            await running.kill()


def handled(metrics: dict[str, float], method: str) -> dict[str, float]:
    """The calls of a method by code."""
    return {
        name.partition("{")[2].partition(",")[0]: value
        for name, value in metrics.items()
        if name.startswith("grpc_server_handled_total") and f",{method}," in name and value
    }


def lines(server: ServerProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in map(orjson.loads, server.log) if line["event"] == event]


async def test_calls_of_methods_that_there_are_not_are_one_series_and_their_path_is_cut_in_the_log(
    server: ServerProcess,
) -> None:
    async with raw_connection(server.address) as connection:
        # when
        paths = [f"/{SERVICE}/Trakc", "/x/\x1b[31mé", "/" + "y" * 500]
        answers = [await connection.ended(await connection.call(path, message(b""))) for path in paths]

    # then
    assert {answer.code for answer in answers} == {grpc.StatusCode.UNIMPLEMENTED.value[0]}
    metrics = await server.until_metrics(lambda metrics: handled(metrics, "unknown"))
    assert handled(metrics, "unknown") == {"Unimplemented": 3}
    shown = [line["path"] for line in lines(server, "call of an unknown method")]
    assert shown == [paths[0], "/x/\\x1b[31m\\xe9", paths[2][:100]]


async def test_calls_that_grpc_ends_are_counted_by_what_they_are(server: ServerProcess) -> None:
    async with raw_connection(server.address) as connection:
        # when a message is above 4 MiB, and deadlines pass while a delivery is awaited
        large = await connection.call(f"/{SERVICE}/Track", message(bytes(60_000), length=LARGE), token=TOKEN)
        await connection.ended(large)
        request = TrackRequest(track=track(1), options=SendOptions(wait_for_delivery=True)).SerializeToString()
        calls = [
            await connection.call(f"/{SERVICE}/Track", message(request), token=TOKEN, grpc_timeout=b"300m")
            for _ in range(DEADLINES)
        ]
        for call in calls:
            await connection.ended(call)

    # then
    metrics = await server.until_metrics(lambda metrics: sum(handled(metrics, "Track").values()) == DEADLINES + 1)
    assert handled(metrics, "Track") == {"InvalidArgument": 1, "DeadlineExceeded": DEADLINES}
    peers = {line["peer"] for line in lines(server, "call")}
    assert peers == {"127.0.0.1"}


async def test_refusals_are_counted_and_logged_by_field_and_no_key_of_a_caller_is(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        # when
        events, bad = EventServiceStub(channel), track(1, properties={KEY: float("inf")})
        with pytest.raises(grpc.aio.AioRpcError):
            await events.Track(TrackRequest(track=bad), metadata=METADATA)
        batch = BatchSendRequest(events=[event(1, properties={KEY: float("inf")}), event(2, user_id=""), event(3)])
        async for _ in events.BatchSend(iter([batch]), metadata=METADATA):
            pass
        with pytest.raises(grpc.aio.AioRpcError):
            await DeadLetterServiceStub(channel).List(ListRequest(), metadata=METADATA)

    # then
    metrics = await server.until_metrics(lambda metrics: handled(metrics, "List"))
    assert metrics["refused_fields_total{track.properties}"] == 2
    assert metrics["refused_fields_total{track.user_id}"] == 1
    said = {line["method"].rpartition("/")[2]: line for line in lines(server, "call")}
    assert said["Track"]["fields"] == ["track.properties"]
    assert said["BatchSend"]["refused"] == {"track.properties": 1, "track.user_id": 1}
    assert (said["List"]["code"], said["List"]["caller"]) == ("PERMISSION_DENIED", "checkout")
    assert KEY not in "\n".join(server.log)


def test_fields_have_a_bounded_number_of_series() -> None:
    # given
    registry = CollectorRegistry()
    metrics = GrpcMetrics(registry)

    # when
    for number in range(2 * MAX_FIELDS):
        metrics.count_refused({f"field-{number}": 1})

    # then
    [family] = [family for family in registry.collect() if family.name.endswith("refused_fields")]
    assert len(family.samples) == MAX_FIELDS
    assert (
        registry.get_sample_value("pointillist_destination_refused_fields_total", {"field": "other"}) == MAX_FIELDS + 1
    )
