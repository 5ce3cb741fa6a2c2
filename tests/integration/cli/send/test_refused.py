"""`send --refused FILE`: what was refused, to be mended and sent again; and how long runs show that they live."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli.input_file import SegmentFile
from service.cli.send.progress import progress
from service.cli.send.stream import Summary
from tests.integration.cli.send.test_send import tracks
from tests.support.background import Served, served
from tests.support.commands import call
from tests.support.processes import run
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server
from tests.support.waiting import until

NOT_JSON = b'{"type": "track", "userId":\n'
NO_NAME = b'{"type": "track", "userId": "u", "properties": {"number": 9}}\n'


def large() -> bytes:
    """A message as large as an event may be, before it is given the message_id that only the server sees."""
    properties = {"text": "x" * 32_700}
    return json.dumps({"type": "track", "userId": "u", "event": "E", "properties": properties}).encode() + b"\n"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as shared:
        yield shared


def test_what_this_side_and_the_server_refuse_is_written_with_its_line_and_can_be_mended_and_sent_again(
    shared: Served, tmp_path: Path
) -> None:
    # given
    refused, mended = tmp_path / "refused.jsonl", tmp_path / "mended.jsonl"

    # when
    given = tracks(0, 2, with_ids=False) + NOT_JSON + large() + NO_NAME
    first = call("send", "-", "--target", shared.address, "--refused", str(refused), given=given)

    # then
    found = {one["line"]: one for one in lines_of(refused)}
    assert {line: one["text"].encode() + b"\n" for line, one in found.items()} == {
        3: NOT_JSON,
        4: large(),
        5: NO_NAME,
    }
    assert {line: one["reasons"][0]["field"] for line, one in found.items()} == {
        3: "",
        4: "track",
        5: "event",
    }
    assert (found[3]["message_id"], found[4]["message_id"] != "") == ("", True)
    assert "read: 5 lines, 1 of them unreadable" in first.out_lines
    assert first.code == 1

    # when
    mended.write_text(found[5]["text"].replace("{", '{"event": "Mended", ', 1))
    second = call("send", str(mended), "--target", shared.address)

    # then
    assert (second.out_lines[0], second.code) == ("accepted: 1", 0)
    shared.until_taken("Seen", 2)
    shared.until_taken("Mended", 1)


def test_a_file_that_holds_something_is_not_written_over_and_nothing_is_sent(shared: Served, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    options = ("--target", shared.address, "--refused", str(tmp_path / "mine"))

    ended = call("send", "-", *options, given=tracks(0, 2, "Kept"))

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert "mine holds something already, which is not written over" in ended.err
    assert (tmp_path / "mine").read_text() == "mine"
    # and the server knows none of it
    assert call("send", "-", "--target", shared.address, given=tracks(0, 2, "Kept")).out_lines[0] == "accepted: 2"


def test_a_run_in_which_nothing_is_refused_leaves_an_empty_file_that_the_next_run_takes(
    shared: Served, tmp_path: Path
) -> None:
    options = ("--target", shared.address, "--refused", str(tmp_path / "refused.jsonl"))

    codes = [call("send", "-", *options, given=tracks(0, 2, "Fine")).code for _ in range(2)]

    assert codes == [0, 0]
    assert (tmp_path / "refused.jsonl").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("bad", [NO_NAME, large()], ids=["by this side", "by the server"])
async def test_a_full_disk_ends_it_with_the_reason(shared: Served, bad: bytes) -> None:
    options = ("--target", shared.address, "--refused", "/dev/full")

    ended = await run("send", "-", *options, given=tracks(0, 2) + bad)

    assert ended.code == 2
    assert "--refused: /dev/full cannot be written: No space left on device" in ended.err_lines[-1]


async def test_what_became_of_a_file_so_far_is_said_where_the_server_refuses_to_go_on(tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text('[callers.importer]\nsha256 = "' + "0" * 64 + '"\n')
    (tmp_path / "token").write_text("wrong")
    async with (
        running_sandbox() as sandbox,
        running_server(sandbox, tmp_path, callers_file=str(callers)) as server,
    ):
        options = ("--target", server.address, "--token-file", str(tmp_path / "token"))
        ended = await run("send", "-", *options, given=tracks(0, 2) + NO_NAME)

    assert ended.code == 2
    assert ended.out_lines[0] == "accepted: 0"
    assert "UNAUTHENTICATED" in ended.err_lines[-1]


async def test_off_a_terminal_a_line_now_and_then_shows_that_it_lives_and_that_it_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # given
    (tmp_path / "some.jsonl").write_bytes(tracks(0, 10))
    summary, said = Summary(accepted=1200, is_connected=True), ""

    def line_holds(words: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return words in said

    with SegmentFile(str(tmp_path / "some.jsonl")) as messages:
        async with progress(messages, summary, line_interval=0.01):
            # then
            await until(lambda: line_holds("progress: 0 %, 1,200 events, "))

            # when
            summary.is_connected = False

            # then
            await until(lambda: line_holds(" events/s; waiting for the server\n"))


async def test_a_short_run_writes_no_line_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.jsonl").write_bytes(tracks(0, 10))
    with SegmentFile(str(tmp_path / "some.jsonl")) as messages:
        async with progress(messages, Summary()):
            await asyncio.sleep(0)

    assert capsys.readouterr().err == ""
