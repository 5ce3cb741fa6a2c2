"""The commands `dead-letters list|show|replay|delete`, on a running server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.sandbox.server import Behaviour, Sandbox
from tests.support.processes import Ended, run
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE


def tracks(count: int, event: str = "Seen") -> bytes:
    """Lines of track messages, told from each other by their message ids."""
    messages = (
        {"type": "track", "userId": f"u-{number}", "event": event, "messageId": f"{event}-{number}"}
        for number in range(count)
    )
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


class Commands:
    """A server whose Pointillist refuses every record, and the commands that speak to it."""

    def __init__(self, sandbox: Sandbox, address: str) -> None:
        self.sandbox = sandbox
        self._environ = {"POINTILLIST_GRPC_LISTEN": address}

    async def run(self, *arguments: str, given: bytes = b"") -> Ended:
        return await run(*arguments, given=given, environ=self._environ)

    async def bury(self, given: bytes) -> list[str]:
        """Send messages, wait until each is a dead letter, and give the lines of the list."""
        sent = await self.run("send", "-", given=given)
        assert sent.code == 0, sent.err
        count = given.count(b"\n")
        async with asyncio.timeout(DEADLINE):
            while len(lines := (await self.run("dead-letters", "list")).out_lines) < count:
                pass
        return lines


@asynccontextmanager
async def refusing(folder: Path) -> AsyncIterator[Commands]:
    async with running_sandbox() as sandbox:
        sandbox.behaviour = Behaviour({"400": 1.0})
        async with running_server(sandbox, folder) as server:
            yield Commands(sandbox, server.address)


async def test_on_a_first_day_all_that_was_refused_is_replayed_once_the_set_up_is_mended(tmp_path: Path) -> None:
    async with refusing(tmp_path) as commands:
        # given
        await commands.bury(tracks(20))
        assert commands.sandbox.records == []

        # when
        commands.sandbox.behaviour = Behaviour()
        replayed = await commands.run("dead-letters", "replay", "--all")

        # then
        assert (replayed.code, replayed.out, replayed.err) == (0, "replayed: 20\n", "")
        assert await until_taken(commands.sandbox, 20) == {f"Seen-{number}" for number in range(20)}
        listed = await commands.run("dead-letters", "list")
        assert (listed.code, listed.out, listed.err) == (0, "", "no dead letters\n")


async def test_a_dead_letter_is_listed_on_one_line_without_control_characters_and_shown_whole(tmp_path: Path) -> None:
    async with refusing(tmp_path) as commands:
        # given a name that would turn a terminal red
        [line] = await commands.bury(tracks(1, "Red \x1b[31m\x7f\u009b1m"))

        # when
        shown = await commands.run("dead-letters", "show", line.split()[0])

        # then
        assert "  400  1 attempt  " in line
        assert "\\u001b[31m\\u007f\\u009b1m" in line
        assert line.isprintable()
        assert all(text.isprintable() for text in shown.out_lines)
        letter = json.loads(shown.out)
        assert letter["deadLetter"]["event"]["track"]["event"] == "Red \x1b[31m\x7f\u009b1m"
        assert letter["record"]["actors"] == {"Customer": {"userId": "u-0"}}
        assert (letter["record"]["labels"], letter["record"]["numbers"]) == ({}, {})
        assert shown.code == 0


async def test_dead_letters_are_chosen_by_id_and_by_event_type(tmp_path: Path) -> None:
    async with refusing(tmp_path) as commands:
        # given
        lines = await commands.bury(tracks(3) + tracks(2, "Bought"))
        [first] = [line.split()[0] for line in lines if "  Seen-0  " in line]

        # when
        deleted = await commands.run("dead-letters", "delete", first)
        bought = await commands.run("dead-letters", "delete", "--event-type", "Bought")
        none = await commands.run("dead-letters", "delete", first)

        # then
        assert (deleted.code, deleted.out) == (0, "deleted: 1\n")
        assert (bought.code, bought.out) == (0, "deleted: 2\n")
        assert (none.code, none.out) == (1, "deleted: 0\n")
        left = (await commands.run("dead-letters", "list")).out_lines
        assert sorted(line.split("  ")[5] for line in left) == ["Seen-1", "Seen-2"]


@pytest.mark.parametrize("command", ["replay", "delete"])
async def test_all_dead_letters_are_never_meant_by_accident(command: str) -> None:
    ended = await run("dead-letters", command)

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert "nothing is chosen" in ended.err


@pytest.mark.parametrize("arguments", [("list",), ("show", "1"), ("replay", "--all"), ("delete", "--all")])
async def test_a_server_that_cannot_be_reached_is_named_as_send_names_it(arguments: tuple[str, ...]) -> None:
    # given
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    # when
    ended = await run("dead-letters", *arguments, "--target", address)

    # then
    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert ended.err.startswith(f"pointillist-destination: {address}: no server can be reached there in plain text;")
