"""The metrics of gRPC calls and of the loops, as Prometheus reads them from a real server."""

import hashlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Sandbox
from service.telemetry.grpc_metrics import GrpcMetrics
from tests.support.events import event, track
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for

SERVICE = "pointillist_destination.v1.EventService"
CALLER = "a-token-of-checkout"
BEARER = (("authorization", f"Bearer {CALLER}"),)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[callers.checkout]\nsha256 = "{hashlib.sha256(CALLER.encode()).hexdigest()}"\n')
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    settings = settings_for(tmp_path / "outbox.db", sandbox, callers_file=str(callers))
    process = await ServerProcess.start(settings)
    yield process
    await process.kill()
    await sandbox.stop()


async def test_calls_are_counted_by_method_and_code(server: ServerProcess) -> None:
    # given every series at zero
    before = await server.metrics()
    assert before[f"grpc_server_handled_total{{Internal,Track,{SERVICE},unary}}"] == 0
    assert before[f"grpc_server_started_total{{BatchSend,{SERVICE},bidi_stream}}"] == 0
    assert before["caller_calls_total{checkout}"] == 0

    # when
    async with grpc.aio.insecure_channel(server.address) as channel:
        events = EventServiceStub(channel)
        for number in range(3):
            await events.Track(TrackRequest(track=track(number)), metadata=BEARER)
        for request, metadata in ((TrackRequest(), BEARER), (TrackRequest(track=track()), ())):
            with pytest.raises(grpc.aio.AioRpcError):
                await events.Track(request, metadata=metadata)
        stream = events.BatchSend(metadata=BEARER)
        for sequence in range(2):
            await stream.write(BatchSendRequest(sequence=sequence, events=[event(10 + sequence)]))
        await stream.done_writing()
        assert len([answer async for answer in stream]) == 2

    # then
    ended = f"grpc_server_handled_total{{OK,BatchSend,{SERVICE},bidi_stream}}"
    found = await server.until_metrics(lambda found: found[ended] == 1)
    unary, both = f"Track,{SERVICE},unary", f"BatchSend,{SERVICE},bidi_stream"
    assert {
        name: found[f"grpc_server_{name}"]
        for name in (
            f"started_total{{{unary}}}",
            f"handled_total{{OK,{unary}}}",
            f"handled_total{{InvalidArgument,{unary}}}",
            f"handled_total{{Unauthenticated,{unary}}}",
            f"msg_received_total{{{unary}}}",
            f"msg_sent_total{{{unary}}}",
            f"handling_seconds_count{{{unary}}}",
            f"msg_received_total{{{both}}}",
            f"msg_sent_total{{{both}}}",
        )
    } == {
        f"started_total{{{unary}}}": 5,
        f"handled_total{{OK,{unary}}}": 3,
        f"handled_total{{InvalidArgument,{unary}}}": 1,
        f"handled_total{{Unauthenticated,{unary}}}": 1,
        f"msg_received_total{{{unary}}}": 4,  # what a stranger sends is not read
        f"msg_sent_total{{{unary}}}": 3,
        f"handling_seconds_count{{{unary}}}": 5,
        f"msg_received_total{{{both}}}": 2,
        f"msg_sent_total{{{both}}}": 2,
    }
    assert found["caller_calls_total{checkout}"] == 5
    # and what was sent made no series
    assert found.keys() - before.keys() == {"refused_fields_total{track}"}  # all others are there from the start


async def test_the_heart_of_each_loop_beats_until_the_process_is_stuck(server: ServerProcess) -> None:
    hearts = [f"heartbeat_total{{{loop}}}" for loop in ("relay", "writer", "health")]
    first = await server.metrics()
    # when it works
    later = await server.until_metrics(lambda found: all(found[heart] > first[heart] for heart in hearts))
    # when it stands still for as long as it takes to see that
    server.process.send_signal(signal.SIGSTOP)
    server.process.send_signal(signal.SIGCONT)
    # then it goes on after
    await server.until_metrics(lambda found: all(found[heart] > later[heart] for heart in hearts))


def test_the_buckets_of_the_histogram_add_up() -> None:
    registry = CollectorRegistry()
    metrics = GrpcMetrics(registry)
    meter = metrics.meter("unary", "s", "m")
    for seconds in (0.0005, 0.001, 0.003, 5000.0):
        meter.handled("OK", seconds)
    text = generate_latest(registry).decode()
    labels = 'grpc_method="m",grpc_service="s",grpc_type="unary"'
    for bound, count in (("0.001", 2.0), ("0.0025", 2.0), ("0.005", 3.0), ("600.0", 3.0), ("+Inf", 4.0)):
        assert f'grpc_server_handling_seconds_bucket{{{labels},le="{bound}"}} {count}\n' in text.replace(
            f'le="{bound}",{labels}', f'{labels},le="{bound}"'
        )
    assert f"grpc_server_handling_seconds_count{{{labels}}} 4.0\n" in text
