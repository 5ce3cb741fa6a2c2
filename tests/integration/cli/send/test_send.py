"""The command `send`: through a real server process to a real sandbox."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from service.cli.send.stream import RESUME_DELAY, delay_before_next
from tests.support.background import Served, served
from tests.support.certificates import OPENSSL, make_authority
from tests.support.commands import call
from tests.support.paths import EVENTS, PROJECT
from tests.support.processes import end, run, start
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

READ = "read: 23 lines, 0 of them unreadable"


def tracks(first: int, last: int, event: str = "Seen", *, with_ids: bool = True) -> bytes:
    """Lines of track messages that differ in their number, and in their message_id where they have one."""
    messages = (
        {"type": "track", "userId": "u", "event": event, "properties": {"number": number}}
        | ({"messageId": f"{event}-{number}"} if with_ids else {})
        for number in range(first, last)
    )
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def test_a_real_file_is_delivered_and_summed_up_and_sending_it_again_sends_nothing_twice(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        # when
        first = await run("send", str(EVENTS), "--target", server.address, "--batch-size", "5")
        await until_taken(sandbox, 17)
        second = await run("send", str(EVENTS), "--target", server.address)

        # then
        refused = '  line 12: event: track without event; a name such as "Order Completed" is right'
        rest = ["filtered: 2", "skipped: 3 (page 2, group 1)", "rejected: 1", refused, READ]
        assert first.out_lines[:-1] == ["accepted: 17", "duplicates: 0", *rest]
        assert second.out_lines[:-1] == ["accepted: 0", "duplicates: 17", *rest]
        assert re.fullmatch(r"took: \d+\.\d s, \d+ events/s", first.out_lines[-1])
        assert first.err_lines == ["ignored: writeKey, _metadata (no place for them in the contract)"]
        assert (first.code, second.code) == (1, 1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests that need no more than a target."""
    with served(tmp_path_factory.mktemp("served")) as shared:
        yield shared


def test_the_address_comes_from_the_setting_and_all_is_well_where_nothing_was_rejected(shared: Served) -> None:
    ended = call(
        "send", "-", given=tracks(0, 3, "Set", with_ids=False), environ={"POINTILLIST_GRPC_LISTEN": shared.address}
    )

    assert ended.out_lines[0] == "accepted: 3"
    assert (ended.code, ended.err) == (0, "")
    assert len(shared.until_taken("Set", 3)) == 3


def test_what_is_rejected_is_named_with_its_line_and_reason(shared: Served) -> None:
    # given
    deep: object = 1
    for _ in range(40):
        deep = {"a": deep}
    bad = json.dumps(
        {"type": "track", "userId": "u", "event": "Deep", "messageId": "deep-1", "properties": {"deep": deep}}
    ).encode()

    # when
    given = tracks(0, 2, "Level") + bad + b"\n" + tracks(2, 4, "Level")
    ended = call("send", "-", "--target", shared.address, given=given)

    # then
    assert ended.out_lines[0] == "accepted: 4"
    assert ended.out_lines[4] == "rejected: 1"
    assert ended.out_lines[5].startswith("  line 3: ")
    assert "levels" in ended.out_lines[5]
    assert ended.code == 1


def test_only_the_first_twenty_rejections_are_named(shared: Served) -> None:
    ended = call("send", "-", "--target", shared.address, given=b'{"type": "identify"}\n' * 25)

    assert ended.out_lines[4] == "rejected: 25"
    assert [line.split(":")[0] for line in ended.out_lines[5:25]] == [f"  line {n}" for n in range(1, 21)]
    assert ended.out_lines[25] == "  and 5 more"


async def test_a_stream_that_breaks_is_resumed_and_no_event_is_lost_or_sent_as_two(tmp_path: Path) -> None:
    # given a sender that has been answered some of its file
    listen = f"127.0.0.1:{free_port()}"
    async with running_sandbox() as sandbox:
        async with running_server(sandbox, tmp_path, grpc_listen=listen) as server:
            sender = await start("send", "-", "--target", listen, "--batch-size", "10")
            assert sender.stdin is not None
            sender.stdin.write(tracks(0, 505, with_ids=False))
            await until_taken(sandbox, 500)

            # when the server goes, and comes back
            await server.stop()
        sender.stdin.write(tracks(505, 600, with_ids=False))
        async with running_server(sandbox, tmp_path, grpc_listen=listen):
            ended = await end(sender)

            # then
            summary = dict(line.split(": ", 1) for line in ended.out_lines)
            assert int(summary["accepted"]) + int(summary["duplicates"]) == 600
            assert ended.code == 0
            async with asyncio.timeout(DEADLINE):
                await until_taken(sandbox, 600)
            numbers = {record.record["numbers"]["number"] for record in sandbox.records}
            assert len(numbers) == len({record.message_id for record in sandbox.records}) == 600


async def test_ctrl_c_ends_it_at_once_while_it_waits_for_more_of_a_pipe(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        # given
        sender = await start("send", "-", "--target", server.address, "--batch-size", "1")
        assert sender.stdin is not None
        sender.stdin.write(tracks(0, 1))
        await until_taken(sandbox, 1)

        # when
        sender.send_signal(signal.SIGINT)

        # then
        async with asyncio.timeout(DEADLINE):
            assert await sender.wait() != 0
        assert "Traceback" not in (await end(sender)).err


def test_a_server_that_cannot_be_reached_is_named_on_one_line() -> None:
    address = f"127.0.0.1:{free_port()}"

    ended = call("send", str(EVENTS), "--target", address)

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert ended.err.startswith(f"pointillist-destination: {address}: no server can be reached there")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/at/all.jsonl"], "'/nowhere/at/all.jsonl' cannot be read: No such file or directory"),
        (["-", "--target", "nonsense"], "--target: 'nonsense' is not an address"),
        (["-", "--ca-file", str(EVENTS)], f"--ca-file: {EVENTS} holds no certificate"),
        (["-", "--ca-file", os.devnull], f"--ca-file: {os.devnull} holds no certificate"),
        (["-", "--token-file", os.devnull], f"--token-file: {os.devnull} holds no token: it is empty"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_on_one_line(arguments: list[str], said: str) -> None:
    ended = call("send", *arguments)

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert ended.err.startswith(f"pointillist-destination: {said}")


async def test_a_progress_bar_is_shown_on_a_terminal(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        # given a terminal for standard error
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "send", str(EVENTS), "--target", server.address),
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'generated'}", "TERM": "xterm"},
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)

        # when
        async with asyncio.timeout(DEADLINE):
            out, _ = await process.communicate()
        shown = os.read(ours, 65536).decode()
        os.close(ours)

        # then
        assert "events" in shown
        assert "%" in shown
        assert out.startswith(b"accepted: 17\n")


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
async def test_a_server_in_plain_text_that_is_called_with_tls_is_told_with_that_reason(
    shared: Served, tmp_path: Path
) -> None:
    authority = make_authority(tmp_path, "authority").certificate

    ended = await run("send", str(EVENTS), "--target", shared.address, "--ca-file", str(authority))

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert "no server can be reached there with TLS, which --ca-file asks for" in ended.err
    assert "goes without --ca-file" in ended.err


def test_an_unknown_type_and_the_place_in_a_batch_are_named_once(shared: Served) -> None:
    # given
    given = b'{"batch": [{"type": "trak"}, {"type": "page"}, {"type": "track", "userId": "u"}]}\n'

    # when
    ended = call("send", "-", "--target", shared.address, given=given)

    # then
    assert "skipped: 2 (unknown type 'trak' 1, page 1)" in ended.out_lines
    assert ended.out_lines[5].startswith("  line 1, batch[2]: event: track without event")


def failure(code: grpc.StatusCode, *details: Message) -> grpc.aio.AioRpcError:
    """What a call fails with; with details it is the server's word, without them the client's own."""
    status = status_pb2.Status(code=13)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = [("grpc-status-details-bin", status.SerializeToString())] if details else []
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "")


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"])
def test_a_connection_that_breaks_is_resumed_whatever_the_client_calls_it(code: str) -> None:
    assert delay_before_next(failure(grpc.StatusCode[code])) == RESUME_DELAY


@pytest.mark.parametrize("code", ["INTERNAL", "UNAUTHENTICATED", "INVALID_ARGUMENT"])
def test_what_the_server_itself_refuses_is_not_tried_again(code: str) -> None:
    info = error_details_pb2.ErrorInfo(domain="pointillist-destination", reason="BUG")

    assert delay_before_next(failure(grpc.StatusCode[code], info)) is None


def test_a_refusal_of_the_clients_own_that_is_no_break_is_not_tried_again() -> None:
    assert delay_before_next(failure(grpc.StatusCode.UNIMPLEMENTED)) is None


def test_a_connection_that_goes_on_breaking_is_opened_ever_later_as_the_service_config_for_callers_has_it() -> None:
    policy = json.loads((PROJECT / "deploy" / "service-config.json").read_text())["methodConfig"][0]["retryPolicy"]
    first, most = (float(policy[name].removesuffix("s")) for name in ("initialBackoff", "maxBackoff"))

    delays = [delay_before_next(failure(grpc.StatusCode.UNAVAILABLE), breaks) for breaks in (0, 1, 2, 10, 10_000)]

    assert delays == [first, first * policy["backoffMultiplier"], first * policy["backoffMultiplier"] ** 2, most, most]


def test_a_server_that_says_when_is_obeyed() -> None:
    info = error_details_pb2.ErrorInfo(domain="pointillist-destination", reason="RATE")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)

    assert delay_before_next(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, info, retry)) == 1.5
