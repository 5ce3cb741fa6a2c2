"""The command line: what is said, and the exit codes."""

import asyncio
import json
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.support.commands import call
from tests.support.processes import Ended, kill, read_until, run, start
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

TOKEN = {"POINTILLIST_API_TOKEN": "token", "POINTILLIST_METRICS_LISTEN": ""}


def assert_one_line(ended: Ended, pattern: str) -> None:
    """The command could not run, and said why on one line."""
    errors = [line for line in ended.err_lines if not line.startswith("{")]  # what else there is, is the log
    assert len(errors) == 1, ended.err
    assert re.search(pattern, errors[0]), errors[0]
    assert errors[0].startswith("pointillist-destination: ")
    assert (ended.code, ended.out) == (2, "")


def test_the_version_is_said_on_one_line() -> None:
    ended = call("--version")

    assert ended.code == 0
    assert len(ended.out_lines) == 1
    assert ended.out.startswith("pointillist-destination")


def test_help_names_every_command() -> None:
    ended = call("--help")

    assert ended.code == 0
    for command in ("serve", "sandbox", "send", "map"):
        assert re.search(rf"^  {command} ", ended.out, re.MULTILINE)


def test_an_option_that_does_not_exist_is_refused_without_a_traceback() -> None:
    ended = call("serve", "--nonsense")

    assert ended.code == 2
    assert "No such option" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("environ", "pattern"),
    [
        ({"POINTILLIST_METRICS_LISTEN": ""}, "no token for Pointillist: set POINTILLIST_API_TOKEN"),
        (TOKEN | {"POINTILLIST_GRPC_LISTENS": "x"}, "POINTILLIST_GRPC_LISTENS: .* nearest is POINTILLIST_GRPC_LISTEN"),
        (TOKEN | {"POINTILLIST_API_URL": "nonsense"}, "POINTILLIST_API_URL: is not a URL"),
        (TOKEN | {"POINTILLIST_OUTBOX_URL": "sqlite:////nowhere/at/all.db"}, "/nowhere"),
        (TOKEN | {"POINTILLIST_CONFIG_FILE": "/nowhere/at/all.toml"}, "/nowhere/at/all.toml cannot be read"),
    ],
)
def test_serve_says_on_one_line_what_is_wrong_with_a_setting(environ: Mapping[str, str], pattern: str) -> None:
    assert_one_line(call("serve", environ=environ), pattern)


async def test_serve_says_every_fault_of_the_settings_on_a_line_of_its_own() -> None:
    ended = await run("serve", environ=TOKEN | {"POINTILLIST_API_URL": "x", "POINTILLIST_MAX_AGE": "x"})

    assert ended.code == 2
    assert sorted(line.split(": ")[1] for line in ended.err_lines) == ["POINTILLIST_API_URL", "POINTILLIST_MAX_AGE"]


def test_serve_refuses_a_mapping_file_that_cannot_be_used(tmp_path: Path) -> None:
    # given
    (tmp_path / "mapping.toml").write_text("nonsense = 1\n")

    # when
    ended = call("serve", environ=TOKEN | {"POINTILLIST_MAPPING_FILE": str(tmp_path / "mapping.toml")})

    # then
    assert_one_line(ended, "mapping.toml.*nonsense")


@pytest.mark.parametrize("setting", ["POINTILLIST_GRPC_LISTEN", "POINTILLIST_METRICS_LISTEN"])
async def test_serve_says_on_one_line_that_a_port_is_taken(setting: str, tmp_path: Path) -> None:
    # given
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environ = TOKEN | {
            "POINTILLIST_OUTBOX_URL": f"sqlite:///{tmp_path}/outbox.db",
            "POINTILLIST_GRPC_LISTEN": "127.0.0.1:0",
            setting: address,
        }

        # when
        ended = await run("serve", environ=environ)

    # then
    assert_one_line(ended, f"{setting}: .*{address}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_well_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        # when
        server.process.send_signal(number)
        await server.ended()

    # then
    assert json.loads(server.log[-1])["event"] == "stopped"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--listen", "nonsense"], "--listen: 'nonsense' is not an address"),
        (["--answers", "{"], "--answers: is not JSON"),
        (["--answer", "503"], "--answer: '503' is not ANSWER=SHARE"),
        (["--answer", "503=0.1", "--answers", "{}"], "--answers and --answer are both given"),
        (["--retry-after", "later"], "--retry-after: "),
        (["--delay", "soon"], "--delay: 'soon' is not a duration"),
        (["--listen", "256.1.1.1.1:0"], "--listen: cannot listen on 256.1.1.1.1:0"),
        (["--answers", "{}"], "--answers: names no answer"),
        (["--answers", "[]"], "--answers: expected an object of weights"),
        (["--answers", '{"600": 1}'], "--answers: '600' is no status"),
        (["--answer", "503=2"], "--answer: the shares add up to 2; at most 1 is right"),
        (["--answer", "503=-1"], "--answer: the weight of 503 is -1.0"),
    ],
)
def test_sandbox_says_on_one_line_what_is_wrong_with_an_option(options: list[str], pattern: str) -> None:
    assert_one_line(call("sandbox", *options), re.escape(pattern))


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        pytest.param([], {"200": 1.0}, marks=pytest.mark.long),
        (["--answer", "503=0.25", "--answer", "drop=0.25"], {"503": 0.25, "drop": 0.25, "200": 0.5}),
        pytest.param(["--answers", '{"200": 7, "503": 3}'], {"200": 7, "503": 3}, marks=pytest.mark.long),
    ],
)
async def test_sandbox_behaves_as_its_options_say(options: list[str], answers: Mapping[str, float]) -> None:
    # given
    process = await start("sandbox", "--listen", "127.0.0.1:0", "--delay", "50ms", "--retry-after", "5s", *options)
    try:
        [said] = await read_until(process.stderr, "takes records at")
        url = said.split()[-1].removesuffix("event")

        # when
        async with ClientSession(url) as client, client.get("behaviour") as response:
            behaviour = await response.json()

        # then
        assert behaviour == {"answers": answers, "delay": "50ms", "retry_after": "5s"}
    finally:
        await kill(process)


async def test_sandbox_insists_on_its_token_and_prints_the_records_it_takes() -> None:
    # given
    process = await start("sandbox", "--listen", "127.0.0.1:0", "--api-token", "right")
    try:
        [said] = await read_until(process.stderr, "takes records at")
        record = {
            "eventSource": "Segment",
            "eventType": "identify",
            "eventTime": "2026-02-23T22:28:55.111Z",
            "actors": {"Customer": {"userId": "u-1"}},
            "labels": {},
            "numbers": {},
        }

        # when
        statuses = []
        async with ClientSession() as client:
            for token in ("wrong", "right"):
                async with client.post(said.split()[-1], json=record, headers={"apiToken": token}) as response:
                    statuses.append(response.status)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE):
            out, _ = await process.communicate()

        # then
        assert statuses == [401, 200]
        assert [json.loads(line) for line in out.splitlines()] == [record]
        assert process.returncode == 0
    finally:
        await kill(process)
