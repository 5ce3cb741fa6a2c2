"""The command `map`: Segment JSON in, records out, no server."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from service.cli.input_file import LONGEST_LINE
from tests.support.commands import call
from tests.support.paths import EVENTS, PROJECT
from tests.support.processes import Ended, end, run, start
from tests.support.waiting import DEADLINE

TRACK = b'{"type": "track", "userId": "u-1", "event": "Seen"}\n'


async def test_every_message_of_a_real_file_becomes_a_record_or_is_accounted_for() -> None:
    # when
    ended = await run("map", str(EVENTS))

    # then
    records = [json.loads(line) for line in ended.out_lines]
    assert [record["eventType"] for record in records[:6]] == ["identify"] * 5 + ["Order Completed"]
    assert len(records) == 17
    assert ended.err_lines == [
        "line 9: filtered: the integrations object says no",
        "line 11: skipped: page",
        'line 12: refused: event: track without event; a name such as "Order Completed" is right',
        "line 13: skipped: page",
        "line 18: filtered: the integrations object says no",
        "line 23: skipped: group",
        "ignored: writeKey, _metadata (no place for them in the contract)",
    ]
    assert ended.code == 1


def test_standard_input_is_read_where_the_file_is_a_dash() -> None:
    ended = call("map", "-", given=TRACK + b"\n" + TRACK)

    assert [json.loads(line)["eventType"] for line in ended.out_lines] == ["Seen", "Seen"]
    assert (ended.code, ended.err) == (0, "")


async def test_a_record_does_not_wait_for_the_end_of_a_pipe() -> None:
    # given
    process = await start("map", "-")
    assert process.stdin is not None
    assert process.stdout is not None

    # when
    process.stdin.write(TRACK)
    line = await process.stdout.readline()

    # then
    assert json.loads(line)["eventType"] == "Seen"
    assert (await end(process)).code == 0


def test_every_fault_of_a_message_has_a_line_of_its_own() -> None:
    given = b'{"type": "track", "properties": []}\n{"batch": [{"type": "identify"}, {"type": "a\\nb"}]}\n'

    ended = call("map", "-", given=given)

    assert [line.split("; ")[0] for line in ended.err_lines] == [
        "line 1: refused: userId: no userId and no anonymousId",
        "line 1: refused: event: track without event",
        "line 1: refused: properties: is an array",
        "line 2, batch[0]: refused: userId: no userId and no anonymousId",
        'line 2, batch[1]: skipped: "a\\nb"',
    ]
    assert (ended.code, ended.out) == (1, "")


def test_a_line_without_end_is_refused_and_the_next_one_is_read() -> None:
    given = b'{"x": "' + b"x" * LONGEST_LINE + b'"}\n' + TRACK

    ended = call("map", "-", given=given)

    assert ended.err.startswith("line 1: refused: has more than 16 MiB")
    assert len(ended.out_lines) == 1


@pytest.mark.parametrize("way", ["option", "setting"])
def test_another_mapping_can_be_tried(way: str, tmp_path: Path) -> None:
    # given
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('event_source = "Ours"\n')
    options = ["--mapping", str(mapping)] if way == "option" else []
    environ = {"POINTILLIST_MAPPING_FILE": str(mapping)} if way == "setting" else {}

    # when
    ended = call("map", "-", *options, given=TRACK, environ=environ)

    # then
    assert json.loads(ended.out)["eventSource"] == "Ours"


@pytest.mark.parametrize("content", [None, b"nonsense = 1\n", b"[["])
def test_a_mapping_file_that_cannot_be_used_is_named_on_one_line(content: bytes | None, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    if content is not None:
        mapping.write_bytes(content)

    ended = call("map", "-", "--mapping", str(mapping), given=TRACK)

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert f"pointillist-destination: {mapping}" in ended.err


@pytest.mark.parametrize("name", ["missing.jsonl", ".", ""])
def test_a_file_that_cannot_be_read_is_named_on_one_line(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name) if name else ""

    ended = call("map", path)

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert ended.err.startswith(f"pointillist-destination: {path!r} cannot be read: ")


async def test_it_ends_quietly_when_nobody_reads_the_records_any_more(tmp_path: Path) -> None:
    # given more records than a pipe holds
    many = tmp_path / "many.jsonl"
    many.write_bytes(TRACK * 20_000)
    process = await start("map", str(many))
    assert process.stdout is not None

    # when
    await process.stdout.readline()
    transport = process._transport  # type: ignore[attr-defined]  # asyncio has no public way to close one pipe
    transport.get_pipe_transport(1).close()

    # then
    ended = await end(process)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_memory_stays_flat_however_long_the_input_is() -> None:
    # given
    process = await start("map", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    page = os.sysconf("SC_PAGE_SIZE")

    async def resident_after(lines: int) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(lines // 100):
            process.stdin.write(TRACK * 100)
            for _ in range(100):
                await process.stdout.readline()
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page  # noqa: ASYNC240  /proc never waits

    # when
    early = await resident_after(2_000)
    late = await resident_after(10_000)

    # then
    assert late - early < 4 * 1024 * 1024
    assert (await end(process)).code == 0


def test_a_type_that_segment_does_not_have_is_named_as_such() -> None:
    ended = call("map", "-", given=b'{"type": "trak", "userId": "u"}\n{"type": "alias"}\n')

    assert ended.err_lines == ["line 1: skipped: trak; Segment has no such type", "line 2: skipped: alias"]
    assert ended.code == 0


def test_explain_says_where_each_part_comes_from_and_what_is_not_used() -> None:
    given = {"type": "track", "userId": "u", "event": "Bought", "properties": {"plan": "gold", "price": 3}}
    given["context"] = {"app": {"name": "shop"}}

    ended = call("map", "--explain", "-", given=json.dumps(given).encode())

    assert json.loads(ended.out_lines[0])["labels"] == {"plan": "gold"}
    assert "  actor Customer.userId < userId, built in" in ended.out_lines
    assert any(
        re.fullmatch(r"  label plan < properties.plan, track row \d+ \(properties\)", x) for x in ended.out_lines
    )
    assert any(line.startswith("  number price < properties.price, ") for line in ended.out_lines)
    assert "  not used: context.app.name" in ended.out_lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("arguments", [("map", str(EVENTS)), ("mapping", "show"), ("doctor",), ("--version",)])
async def test_an_output_that_is_full_is_said_on_one_line(arguments: tuple[str, ...]) -> None:
    # given
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230  a device, which never waits
        stubs = os.pathsep.join([str(PROJECT), str(PROJECT / "generated")])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", *arguments),
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": stubs},
            stdout=full,
            stderr=asyncio.subprocess.PIPE,
        )

    # when
    async with asyncio.timeout(DEADLINE):
        _, err = await process.communicate()
    assert process.returncode is not None
    ended = Ended(process.returncode, "", err.decode())

    # then
    assert ended.code == 2
    assert ended.err_lines[-1] == "pointillist-destination: standard output cannot be written: No space left on device"
    assert "Traceback" not in ended.err
