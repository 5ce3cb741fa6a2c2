"""One line a call, but no flood of them; and a log level that a signal changes."""

import asyncio
import hashlib
import signal
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import structlog

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Sandbox
from service.telemetry.access_log import MAX_FAILED_LINES, MAX_OK_LINES, AccessLog, host
from tests.support.events import event, track
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import until

TRACK = "/pointillist_destination.v1.EventService/Track"
CALLER = "a-token-of-checkout"


class Hand:
    """A clock that is moved by hand."""

    now = 1000.25

    def __call__(self) -> float:
        return self.now


def note(log: AccessLog, code: str = "OK", times: int = 1) -> None:
    for _ in range(times):
        log.note(TRACK, code, 0.0012, "ipv4:127.0.0.1:4711", None)


def test_a_line_says_what_was_called_by_whom_and_how_it_ended() -> None:
    with structlog.testing.capture_logs() as lines:
        AccessLog(Hand()).note(TRACK, "OK", 0.00123, "ipv4:10.0.0.7:4711", "checkout", messages=3)
    assert lines == [
        {
            "event": "call",
            "log_level": "info",
            "method": "pointillist_destination.v1.EventService/Track",
            "code": "OK",
            "ms": 1.23,
            "peer": "10.0.0.7",
            "caller": "checkout",
            "messages": 3,
        }
    ]


def test_a_busy_healthy_method_has_few_lines_a_second_that_say_how_many_were_left_out() -> None:
    clock = Hand()
    log = AccessLog(clock)
    with structlog.testing.capture_logs() as lines:
        note(log, times=MAX_OK_LINES + 25)
        clock.now += 1
        note(log, times=2)
    assert len(lines) == MAX_OK_LINES + 2
    assert [line.get("suppressed") for line in lines[-2:]] == [25, None]


def test_calls_that_fail_are_not_hidden_by_those_that_do_not() -> None:
    log = AccessLog(Hand())
    with structlog.testing.capture_logs() as lines:
        note(log, times=MAX_OK_LINES * 3)
        note(log, "UNAVAILABLE", times=50)
    assert [line["code"] for line in lines].count("UNAVAILABLE") == 50


def test_calls_that_fail_do_not_fill_the_disk_either() -> None:
    log = AccessLog(Hand())
    with structlog.testing.capture_logs() as lines:
        note(log, "UNAUTHENTICATED", times=MAX_FAILED_LINES * 5)
    assert len(lines) == MAX_FAILED_LINES


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[2001:db8::7]:80", "2001:db8::7"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:", "unix:"),
    ],
)
def test_a_peer_is_shown_without_its_port(peer: str, shown: str) -> None:
    assert host(peer) == shown


def parsed(server: ServerProcess) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in server.log if line.startswith("{")]


async def test_a_server_logs_its_calls_and_a_signal_changes_the_level(tmp_path: Path) -> None:
    # given
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[callers.checkout]\nsha256 = "{hashlib.sha256(CALLER.encode()).hexdigest()}"\n')
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    server = await ServerProcess.start(settings_for(tmp_path / "outbox.db", sandbox, callers_file=str(callers)))
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            events = EventServiceStub(channel)
            metadata = (("authorization", f"Bearer {CALLER}"),)

            # when
            await events.Track(TrackRequest(track=track()), metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError):
                await events.Track(TrackRequest(track=track()))
            stream = events.BatchSend(metadata=metadata)
            await stream.write(BatchSendRequest(sequence=1, events=[event(2)]))
            await stream.read()
            stream.cancel()

            # then
            def calls() -> list[tuple[Any, ...]]:
                return [
                    (line["method"].rpartition("/")[2], line["code"], line.get("caller"), line.get("messages"))
                    for line in parsed(server)
                    if line["event"] == "call"
                ]

            await until(lambda: len(calls()) == 3)
            *unary, (name, code, caller, messages) = calls()
            assert unary == [("Track", "OK", "checkout", None), ("Track", "UNAUTHENTICATED", None, None)]
            assert (name, code, caller, messages) == ("BatchSend", "CANCELLED", "checkout", 1)

        # when
        def levels() -> list[str]:
            return [line["level_now"] for line in parsed(server) if line["event"] == "log level changed"]

        server.process.send_signal(signal.SIGUSR1)
        await until(lambda: levels() == ["debug"])
        server.process.send_signal(signal.SIGUSR1)
        await until(lambda: levels() == ["debug", "info"])
        await asyncio.wait_for(server.stop(), 20)
    finally:
        await server.kill()
        await sandbox.stop()
