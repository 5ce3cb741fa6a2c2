"""The commands. Each does no more than read its options and hand them on.

The modules of a command are imported when it runs, so that `--help` and a mistyped option answer at once.
"""

# ruff: noqa: PLC0415  see above

import asyncio
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from service.cli import console
from service.cli.console import NAME, NOT_EVERYTHING, say, show
from service.cli.options import CaFile, CertFile, KeyFile, TokenFile
from service.config.role import Role
from service.errors import needs_extra

commands = typer.Typer(
    name=NAME,
    help="Takes Segment events over gRPC and forwards each to Pointillist, durably.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_File = Annotated[str, typer.Argument(metavar="FILE", help="Segment JSON, a message or a batch a line; - for stdin.")]


def main() -> None:
    """Run the command that the arguments name, and exit."""
    console.open_standard_streams()
    console.run(_run)


def _run() -> None:
    if sys.argv[1:2] != ["map"]:  # its start is the one that matters, as it may run once for every file
        from service.cli import dead_letters

        commands.add_typer(dead_letters.commands, name="dead-letters")
    commands()


def _say_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        try:
            show(f"{NAME} {metadata.version(NAME)}")
        except metadata.PackageNotFoundError:  # it runs from its source, without having been installed
            show(f"{NAME}, a version that is not installed")
        raise typer.Exit


@commands.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_say_version),
    ] = False,
) -> None:
    """Options that go before every command."""


@commands.command()
def serve(
    role: Annotated[
        Role, typer.Option(help="Accept events, relay them, or both; accept and relay need an outbox on NATS.")
    ] = Role.ALL,
) -> None:
    """Accept events and forward them, until SIGTERM or SIGINT.

    Settings are environment variables that begin with POINTILLIST_, or a TOML file that POINTILLIST_CONFIG_FILE names.
    """
    from service.cli.serve import serve as serve_process
    from service.config.settings import load_settings
    from service.telemetry.logs import configure_logging, flush_logs

    settings = load_settings(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    try:
        serve_process(settings, role=role)
    finally:
        flush_logs()  # the line of an error comes last, and `end_at_once` ends the writer's thread too
    console.end_at_once()


@commands.command()
def sandbox(  # noqa: PLR0917  typer takes options by name
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Listen address; port 0 is any free one.")
    ] = "127.0.0.1:8080",
    api_token: Annotated[str | None, typer.Option(metavar="T", help="Require this API token.")] = None,
    answers: Annotated[
        str | None, typer.Option(metavar="JSON", help='Answers by weight, such as \'{"200": 0.7, "503": 0.3}\'.')
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(metavar="ANSWER=SHARE", help="One answer and its share, such as 503=0.2; the rest is 200."),
    ] = None,
    delay: Annotated[str, typer.Option(metavar="DURATION", help="Delay of each answer, such as 50ms.")] = "0s",
    retry_after: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Send Retry-After with each error, such as 5s.")
    ] = None,
) -> None:
    """Run a stand-in for Pointillist on this machine; prints each record that it accepts as a line of JSON.

    An answer is a status from 200 to 599, or drop, hang or truncate.
    """
    with needs_extra("sandbox", "the sandbox"):
        from service.sandbox.behaviour import behaviour_of
        from service.sandbox.server import serve_sandbox

    asyncio.run(serve_sandbox(listen, api_token, behaviour_of(answers, answer, delay, retry_after)))


@commands.command("map")
def map_(
    file: _File,
    mapping: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Mapping file to use instead of POINTILLIST_MAPPING_FILE or the built-in one."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the origin of each part of a record, and the unused values.")
    ] = False,
) -> None:
    """Show the records that a file maps to; nothing is sent.

    The exit code is 1 if a message was refused.
    """
    from service.cli.input_file import SegmentFile
    from service.cli.map import write_records
    from service.mapping.mapping_file import load_mapping

    mapping = _mapping_file(mapping)
    with SegmentFile(file) as messages, console.output():
        if not write_records(messages, load_mapping(mapping), sys.stdout.buffer, explain=explain):
            raise typer.Exit(NOT_EVERYTHING)


@commands.command()
def send(  # noqa: PLR0917  typer takes options by name
    file: _File,
    target: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Server address; default: POINTILLIST_GRPC_LISTEN, or 127.0.0.1:50051."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=2500, help="Maximum number of events per request.")] = 100,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    refused: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write rejected messages here as JSON lines (line, reasons, text); the file must be new or empty.",
        ),
    ] = None,
) -> None:
    """Send a file to a server over gRPC.

    It may be stopped and run again: accepted events are duplicates then, and not sent twice. The exit code is
    1 where a message was refused or rejected.
    """
    from service.cli.client import find_target
    from service.cli.input_file import SegmentFile
    from service.cli.send.refused import RefusedFile
    from service.cli.send.report import send_and_report

    server = find_target(target, ca_file, token_file, cert_file, key_file)
    with SegmentFile(file) as messages, RefusedFile(refused) if refused else nullcontext() as file_of_refused:
        summary = send_and_report(messages, server, batch_size, file_of_refused)
    if summary.rejected:
        raise typer.Exit(NOT_EVERYTHING)


@commands.command()
def doctor(
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also check that Pointillist accepts the token, with a record that is no event."),
    ] = False,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
) -> None:
    """Check this set-up, and advise on its errors.

    The exit code is 1 if it found an error. It changes nothing, and may run beside a server. With --ca-file it calls a
    server with TLS; without, it only compares that server's certificate.
    """
    from service.cli.client import find_target
    from service.cli.doctor.examine import Grade, examine
    from service.cli.doctor.pointillist import ask
    from service.config.settings import load_settings
    from service.telemetry.logs import set_log_level

    set_log_level("error")  # its own errors are among its findings
    settings = load_settings(os.environ)
    is_wrong = False
    server = find_target(None, ca_file, None, cert_file, key_file)
    for finding in examine(settings, (lambda: ask(settings)) if probe else None, server):
        is_wrong = is_wrong or finding.grade is Grade.ERROR
        show(f"{finding.grade.value:8}{finding.check}: {finding.text}")
        if finding.advice:
            show(f"        > {finding.advice}")
    if is_wrong:
        raise typer.Exit(NOT_EVERYTHING)


_mapping_commands = typer.Typer(help="Show the current mapping, or check a mapping file.", no_args_is_help=True)
commands.add_typer(_mapping_commands, name="mapping")


@_mapping_commands.command("show")
def show_mapping() -> None:
    """Print the current mapping, as a mapping file."""
    from service.mapping.mapping_file import load_mapping

    show(load_mapping(_mapping_file(None)).describe())


@_mapping_commands.command("check")
def check_mapping(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Check a mapping file; the exit code is 2 if it cannot be used."""
    import tomllib

    from service.mapping.mapping_file import load_mapping
    from service.mapping.rules import ACTORS

    rules = tomllib.loads(load_mapping(file).describe())
    rows = [*rules.get("track", ()), *rules.get("identify", ())]
    if all(row["to"].startswith(f"{ACTORS}.") for row in rows):
        say(f"{file}: can be used, but no row makes labels or numbers")
    else:
        show(f"{file}: can be used")


def _mapping_file(given: Path | None) -> Path | None:
    """The mapping file that an option or the settings name; None for the built-in mapping."""
    # Reading settings takes longer than the rest of the start, and mostly there are none.
    if given is None and any(name.startswith("POINTILLIST_") for name in os.environ):
        from service.config.settings import load_settings

        return load_settings(os.environ).mapping_file
    return given
