"""`dead-letters`: lists, shows, replays and deletes the events that were given up, on a running server."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import grpc
import orjson
import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pointillist_destination.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from service.cli.client import Target, find_target, is_from_server, no_server, open_channel
from service.cli.console import NOT_EVERYTHING, output, say
from service.cli.console import show as show_lines
from service.cli.input_file import on_one_line
from service.cli.options import CaFile, CertFile, KeyFile, TokenFile
from service.errors import OutputError, SendingError, SettingsError
from service.events.message import event_type
from service.events.segment_time import read_time
from service.telemetry.visible_text import visible_json

PAGE_SIZE = 500
TIMEOUT = 60.0  # seconds of one call
NOTHING = "nothing is chosen: name ids, --reason, --event-type, --user-id, --since or --until, or say --all"

_Call: TypeAlias = Callable[[str, Message], Any]
"""Calls a method of the service by its name."""

commands = typer.Typer(help="List, show, replay and delete dead letters on a running server.", no_args_is_help=True)

_Target = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Server address; default: POINTILLIST_GRPC_LISTEN.")
]
_Reason = Annotated[str | None, typer.Option(metavar="R", help='Reason: a status such as 400, or "max_age".')]
_EventType = Annotated[str | None, typer.Option(metavar="NAME", help="A track's event name, or identify.")]
_UserId = Annotated[str | None, typer.Option(metavar="ID", help="userId or anonymousId.")]
_Since = Annotated[str | None, typer.Option(metavar="TIME", help="Last attempt at or after this time; RFC 3339.")]
_Until = Annotated[str | None, typer.Option(metavar="TIME", help="Last attempt before this time; RFC 3339.")]
_Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", min=1)]
_All = Annotated[bool, typer.Option("--all", help="Select every dead letter.")]


@commands.command("list")
def list_(  # noqa: PLR0917  typer takes options by name
    reason: _Reason = None,
    event_type: _EventType = None,
    user_id: _UserId = None,
    since: _Since = None,
    until: _Until = None,
    target: _Target = None,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
) -> None:
    """List dead letters, oldest first: id, last attempt, reason, attempts, type, message id, detail."""
    which = _filter(None, reason, event_type, user_id, since, until)
    with _service(find_target(target, ca_file, token_file, cert_file, key_file)) as call, output():
        request = dead_letter_service_pb2.ListRequest(filter=which, page_size=PAGE_SIZE)
        is_empty = True
        while True:
            page = call("List", request)
            for letter in page.dead_letters:
                sys.stdout.write(_line(letter) + "\n")
                is_empty = False
            sys.stdout.flush()
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if is_empty:
            say("no dead letters")


@commands.command()
def show(  # noqa: PLR0917  typer takes options by name
    ids: Annotated[list[int], typer.Argument(metavar="ID...", min=1)],
    target: _Target = None,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
) -> None:
    """Show dead letters in full, as JSON, each with its event and the record that the current mapping produces."""
    with _service(find_target(target, ca_file, token_file, cert_file, key_file)) as call:
        for id_ in ids:
            request = dead_letter_service_pb2.GetRequest(id=id_)
            answer = call("Get", request)
            shown = json_format.MessageToDict(answer)
            # A record has its labels and numbers always, as on the wire; an event only the fields that its sender set.
            if answer.HasField("record"):
                shown["record"] = json_format.MessageToDict(answer.record, always_print_fields_with_no_presence=True)
            show_lines(visible_json(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()))


@commands.command()
def export(  # noqa: PLR0917  typer takes options by name
    id_: Annotated[int, typer.Argument(metavar="ID", min=1)],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    target: _Target = None,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
) -> None:
    """Write the stored bytes of a dead letter to a new file: raw, or the event in protobuf's binary form."""
    with _service(find_target(target, ca_file, token_file, cert_file, key_file)) as call:
        letter = call("Get", dead_letter_service_pb2.GetRequest(id=id_)).dead_letter
    content = letter.event.SerializeToString() if letter.HasField("event") else letter.raw
    try:
        with file.open("xb") as output_file:
            output_file.write(content)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror}") from error
    show_lines(f"{file}: {len(content)} bytes")


def _add_command(
    name: str,
    help_text: str,
    act: Callable[[_Call, dead_letter_service_pb2.DeadLetterFilter, bool], int],
    done: str,
) -> None:
    """Add a command that acts on the dead letters that its options choose."""

    def command(  # noqa: PLR0917  typer takes options by name
        ids: _Ids = None,
        everything: _All = False,
        reason: _Reason = None,
        event_type: _EventType = None,
        user_id: _UserId = None,
        since: _Since = None,
        until: _Until = None,
        target: _Target = None,
        ca_file: CaFile = None,
        token_file: TokenFile = None,
        cert_file: CertFile = None,
        key_file: KeyFile = None,
    ) -> None:
        which = _filter(ids, reason, event_type, user_id, since, until)
        is_all = _choose(which, everything=everything)
        with _service(find_target(target, ca_file, token_file, cert_file, key_file)) as call:
            count = act(call, which, is_all)
        _end(count, done)

    commands.command(name, help=help_text)(command)


def _replay(call: _Call, which: dead_letter_service_pb2.DeadLetterFilter, is_all: bool) -> int:
    response = call("Replay", dead_letter_service_pb2.ReplayRequest(filter=which, all=is_all))
    if response.still_invalid:
        say(f"left, because they are no events: {response.still_invalid}; export shows their bytes")
    replayed: int = response.replayed
    return replayed


def _delete(call: _Call, which: dead_letter_service_pb2.DeadLetterFilter, is_all: bool) -> int:
    deleted: int = call("Delete", dead_letter_service_pb2.DeleteRequest(filter=which, all=is_all)).deleted
    return deleted


_add_command(
    "replay",
    "Put dead letters back into the queue; they keep their message ids, and are mapped again."
    "\n\nThe exit code is 1 if there was none to replay.",
    _replay,
    "replayed",
)
_add_command(
    "delete",
    "Delete dead letters for good.\n\nThe exit code is 1 if there was none to delete.",
    _delete,
    "deleted",
)


def _end(count: int, done: str) -> None:
    show_lines(f"{done}: {count}")
    if not count:
        raise typer.Exit(NOT_EVERYTHING)


def _filter(  # noqa: PLR0917  it takes the options of the commands
    ids: list[int] | None,
    reason: str | None,
    event_type: str | None,
    user_id: str | None,
    since: str | None,
    until: str | None,
) -> dead_letter_service_pb2.DeadLetterFilter:
    return dead_letter_service_pb2.DeadLetterFilter(
        ids=ids or [],
        reason=reason or "",
        event_type=event_type or "",
        user_id=user_id or "",
        since=_time("--since", since),
        until=_time("--until", until),
    )


def _time(option: str, text: str | None) -> Timestamp | None:
    try:
        return None if text is None else read_time(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from error


def _choose(which: dead_letter_service_pb2.DeadLetterFilter, *, everything: bool) -> bool:
    chosen = which.ByteSize() > 0
    if everything and chosen:
        raise SettingsError("--all goes without ids and other options")
    if not everything and not chosen:
        raise SettingsError(NOTHING)
    return everything


def _line(letter: dead_letter_service_pb2.DeadLetter) -> str:
    tried = datetime.fromtimestamp(letter.last_attempt_at.seconds, UTC).isoformat().replace("+00:00", "Z")
    fields = (
        str(letter.id),
        tried,
        letter.reason,
        "1 attempt" if letter.attempts == 1 else f"{letter.attempts} attempts",
        event_type(letter.event) if letter.HasField("event") else "(no event)",
        letter.message_id,
        letter.detail,
    )
    return "  ".join(on_one_line(" ".join(text.split())) for text in fields)


@contextmanager
def _service(target: Target) -> Iterator[_Call]:
    """Give a function that calls a method of the service by its name.

    Raises:
        SendingError: the call failed; its message says where and why.
    """
    with open_channel(target) as channel:
        stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)

        def call(method: str, request: Message) -> Any:
            try:
                return getattr(stub, method)(request, timeout=TIMEOUT, metadata=target.metadata)
            except grpc.RpcError as error:
                is_ours = isinstance(error, grpc.Call) and not is_from_server(error)
                if is_ours and error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise SendingError(no_server(target)) from error
                code, words = error.code(), " ".join((error.details() or "").split())
                raise SendingError(f"{target.address}: {code.name}: {words}") from error

        yield call
