"""A stream whose caller does not read its answers: it leaves what others share, and is told so if it ever reads."""

from pathlib import Path

import pytest
import structlog

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, BatchSendResponse
from tests.support.events import event
from tests.support.raw_http2 import message, raw_connection
from tests.support.servers import serving
from tests.support.waiting import until

BATCH_SEND = "/pointillist_destination.v1.EventService/BatchSend"
UNAVAILABLE = 14


async def test_who_reads_again_gets_what_was_written_and_then_hears_that_nothing_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr("service.server.batch_send.UNREAD_AFTER", 0.2)
    requests = [BatchSendRequest(sequence=number, events=[event(number)]) for number in (1, 2)]
    content = b"".join(message(request.SerializeToString()) for request in requests)
    with structlog.testing.capture_logs() as logged:
        async with (
            serving(tmp_path) as server,
            raw_connection(str(server.app.grpc_listen), window=0, keeps=True) as raw,
        ):
            # when
            stream = await raw.call(BATCH_SEND, content, ends=False)
            await until(lambda: any(line["event"] == "answers are not read" for line in logged))
            assert raw.answers[stream].data == 0
            await raw.open_window(stream, 100_000)
            answer = await raw.ended(stream)

            # then
            assert BatchSendResponse.FromString(bytes(answer.content[5:])) == BatchSendResponse(sequence=1, accepted=1)
            assert answer.code == UNAVAILABLE
            assert "no answer was read" in answer.status.message


async def test_a_stop_does_not_wait_for_a_stream_that_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr("service.server.batch_send.UNREAD_AFTER", 0.2)
    content = message(BatchSendRequest(events=[event(0)]).SerializeToString())
    with structlog.testing.capture_logs() as logged:
        environ = {"POINTILLIST_SHUTDOWN_GRACE": "1h"}
        async with serving(tmp_path, environ) as server, raw_connection(str(server.app.grpc_listen), window=0) as raw:
            await raw.call(BATCH_SEND, content, ends=False)
            await until(lambda: any(line["event"] == "answers are not read" for line in logged))

            # when, then
            await server.stop()
