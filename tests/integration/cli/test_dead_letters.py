"""The commands `dead-letters list|show|replay|delete`, on a running server."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pointillist_destination.v1 import event_pb2
from service.sandbox.server import Behaviour
from tests.support.background import Served, served
from tests.support.commands import call
from tests.support.processes import Ended, run
from tests.support.waiting import until_blocking


def tracks(count: int, event: str = "Seen") -> bytes:
    """Lines of track messages, told from each other by their message ids."""
    messages = (
        {"type": "track", "userId": f"u-{number}", "event": event, "messageId": f"{event}-{number}"}
        for number in range(count)
    )
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


class Commands:
    """A server whose Pointillist refuses every record, and the commands that speak to it."""

    def __init__(self, shared: Served) -> None:
        self.shared = shared
        self.environ = {"POINTILLIST_GRPC_LISTEN": shared.address}

    def call(self, *arguments: str, given: bytes = b"") -> Ended:
        return call(*arguments, given=given, environ=self.environ)

    def bury(self, given: bytes) -> list[str]:
        """Send messages, wait until each is a dead letter, and give the lines of the list."""
        sent = self.call("send", "-", given=given)
        assert sent.code == 0, sent.err
        count = given.count(b"\n")
        until_blocking(lambda: len(self.call("dead-letters", "list").out_lines) == count)
        return self.call("dead-letters", "list").out_lines


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as shared:
        yield shared


@pytest.fixture
def commands(shared: Served) -> Iterator[Commands]:
    """The commands, with a server that has no dead letters yet."""
    shared.sandbox.behaviour = Behaviour({"400": 1.0})
    commands = Commands(shared)
    yield commands
    commands.call("dead-letters", "delete", "--all")


def test_on_a_first_day_all_that_was_refused_is_replayed_once_the_set_up_is_mended(commands: Commands) -> None:
    # given
    commands.bury(tracks(20))
    assert commands.shared.taken("Seen") == set()

    # when
    commands.shared.sandbox.behaviour = Behaviour()
    replayed = commands.shared.background.run(run("dead-letters", "replay", "--all", environ=commands.environ))

    # then
    assert (replayed.code, replayed.out, replayed.err) == (0, "replayed: 20\n", "")
    assert commands.shared.until_taken("Seen", 20) == {f"Seen-{number}" for number in range(20)}
    listed = commands.call("dead-letters", "list")
    assert (listed.code, listed.out, listed.err) == (0, "", "no dead letters\n")


def test_a_dead_letter_is_listed_on_one_line_without_control_characters_and_shown_whole(commands: Commands) -> None:
    # given a name that would turn a terminal red
    [line] = commands.bury(tracks(1, "Red \x1b[31m\x7f\u009b1m"))

    # when
    shown = commands.call("dead-letters", "show", line.split()[0])

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


def test_dead_letters_are_chosen_by_id_and_by_event_type(commands: Commands) -> None:
    # given
    lines = commands.bury(tracks(3, "Viewed") + tracks(2, "Bought"))
    [first] = [line.split()[0] for line in lines if "  Viewed-0  " in line]

    # when
    deleted = commands.call("dead-letters", "delete", first)
    bought = commands.call("dead-letters", "delete", "--event-type", "Bought")
    none = commands.call("dead-letters", "delete", first)

    # then
    assert (deleted.code, deleted.out) == (0, "deleted: 1\n")
    assert (bought.code, bought.out) == (0, "deleted: 2\n")
    assert (none.code, none.out) == (1, "deleted: 0\n")
    left = commands.call("dead-letters", "list").out_lines
    assert sorted(line.split("  ")[5] for line in left) == ["Viewed-1", "Viewed-2"]


@pytest.mark.parametrize("command", ["replay", "delete"])
def test_all_dead_letters_are_never_meant_by_accident(command: str) -> None:
    ended = call("dead-letters", command)

    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert "nothing is chosen" in ended.err


@pytest.mark.parametrize("arguments", [("list",), ("show", "1"), ("replay", "--all"), ("delete", "--all")])
def test_a_server_that_cannot_be_reached_is_named_as_send_names_it(arguments: tuple[str, ...]) -> None:
    # given
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    # when
    ended = call("dead-letters", *arguments, "--target", address)

    # then
    assert (ended.code, ended.out, len(ended.err_lines)) == (2, "", 1)
    assert ended.err.startswith(f"pointillist-destination: {address}: no server can be reached there in plain text;")


def test_the_bytes_of_a_dead_letter_are_written_to_a_new_file(commands: Commands, tmp_path: Path) -> None:
    [line] = commands.bury(tracks(1, "Exported"))
    file = tmp_path / "event.bin"

    exported = commands.call("dead-letters", "export", line.split()[0], str(file))
    again = commands.call("dead-letters", "export", line.split()[0], str(file))

    assert exported.code == 0, exported.err
    assert event_pb2.Event.FromString(file.read_bytes()).track.message_id == "Exported-0"
    assert again.code == 2
    assert "File exists" in again.err
