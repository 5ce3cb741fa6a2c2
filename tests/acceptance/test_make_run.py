"""The command behind `make run`: what somebody sees who has just fetched the project."""

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.support.paths import EVENTS, PROJECT
from tests.support.processes import end, kill, read_until, start
from tests.support.sandboxes import running_sandbox

MODULE = "service.cli.demo"
PORTS = {"POINTILLIST_GRPC_LISTEN": "127.0.0.1:0", "POINTILLIST_METRICS_LISTEN": "127.0.0.1:0"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_without_a_token_every_event_is_shown_delivered_and_it_serves_until_a_signal(
    number: signal.Signals,
) -> None:
    # given
    process = await start(module=MODULE, environ=PORTS)
    try:
        # when
        lines = await read_until(process.stdout, "Ctrl-C ends it")

        # then
        shown = [line for line in lines if line.startswith("  → ")]
        assert len(shown) == 17
        assert "17 of 17 delivered" in lines
        assert any(line.startswith("2 filtered") for line in lines)
        assert any(line.startswith("3 (page 2, group 1) skipped") for line in lines)
        assert any("line 12: event: track without event" in line for line in lines)
        assert any(re.search(r"grpcurl .* 127\.0\.0\.1:[1-9]\d* .*EventService/Track", line) for line in lines)
        assert any("grpc.health.v1.Health/Check" in line for line in lines)
        process.send_signal(number)
        ended = await end(process)
        assert (ended.code, ended.err) == (0, "")
    finally:
        await kill(process)


async def test_proxies_of_the_environment_are_not_asked() -> None:
    # given proxies at which nobody answers
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("HTTP_PROXY", "http_proxy", "https_proxy", "grpc_proxy", "ALL_PROXY")
        environ = PORTS | dict.fromkeys(names, url) | {"NO_PROXY": "", "no_proxy": ""}

        # when
        process = await start(module=MODULE, environ=environ | {"POINTILLIST_API_PROXY": url})
        try:
            lines = await read_until(process.stdout, "delivered")
        finally:
            await kill(process)

    # then
    assert "17 of 17 delivered" in lines


async def test_an_outbox_that_is_kept_knows_the_events_the_second_time(tmp_path: Path) -> None:
    environ = PORTS | {"POINTILLIST_OUTBOX_URL": f"sqlite:///{tmp_path}/outbox.db"}
    said = []
    for _ in range(2):
        process = await start(module=MODULE, environ=environ)
        try:
            said.append(await read_until(process.stdout, "Ctrl-C ends it"))
            process.send_signal(signal.SIGINT)
            assert (await end(process)).code == 0
        finally:
            await kill(process)

    assert "17 of 17 delivered" in said[0]
    assert "0 of 0 delivered" in said[1]
    assert "17 duplicates: this outbox had taken them before" in said[1]


async def test_a_port_that_is_taken_is_said_on_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        ended = await end(await start(module=MODULE, environ=PORTS | {"POINTILLIST_GRPC_LISTEN": address}))

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert address in ended.err


async def test_with_a_token_it_serves_for_real(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox:
        environ = PORTS | {
            "POINTILLIST_API_TOKEN": "token",
            "POINTILLIST_API_URL": sandbox.url,
            "POINTILLIST_OUTBOX_URL": f"sqlite:///{tmp_path}/outbox.db",
        }
        process = await start(module=MODULE, environ=environ)
        try:
            await read_until(process.stderr, '"event":"serving"')
            process.send_signal(signal.SIGTERM)
            ended = await end(process)
        finally:
            await kill(process)

    assert (ended.code, ended.out) == (0, "")


def test_the_events_that_are_shown_are_those_that_the_tests_know() -> None:
    assert (PROJECT / "service" / "cli" / "demo" / "data" / EVENTS.name).read_bytes() == EVENTS.read_bytes()
