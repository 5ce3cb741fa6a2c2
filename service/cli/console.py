"""Standard output and standard error of the commands, and their exit codes.

0  success
1  it ran, but some events were refused, or a delivery is missing
2  it could not run: a setting, a file, an address, the outbox or the server cannot be used
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from service.errors import (
    MappingFileError,
    MissingExtraError,
    OutboxUnusableError,
    OutputError,
    PointillistDestinationError,
    SendingError,
    SettingsError,
    UnreadableFileError,
)
from service.telemetry.visible_text import visible

NAME = "pointillist-destination"

NOT_EVERYTHING = 1  # exit code
COULD_NOT_RUN = 2  # exit code
INTERRUPTED = 130  # exit code: 128 and the number of SIGINT, as shells have it


_COULD_NOT_RUN = (
    MappingFileError,
    MissingExtraError,
    OutboxUnusableError,
    OutputError,
    SendingError,
    SettingsError,
    UnreadableFileError,
)


def open_standard_streams() -> None:
    """Open /dev/null in place of a standard stream that was closed before the start, as by `2>&-`.

    Its descriptor would otherwise be that of the next file, such as the outbox, and a message of a library for standard
    error would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free one, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  for as long as we run
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def say(line: str) -> None:
    """Write a line to standard error; what a terminal would obey in it is escaped, as a server may have written it."""
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()


def show(*lines: str) -> None:
    """Write lines to standard output.

    Raises:
        OutputError: it cannot be written.
    """
    with output():
        sys.stdout.writelines(line + "\n" for line in lines)
        sys.stdout.flush()


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Write to standard output; end well when nobody reads it any more, as after `| head`.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        yield
    except OSError as error:
        # Buffered output must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error


def end_at_once() -> NoReturn:
    """End the process with exit code 0, without taking the interpreter down.

    For a server that has closed everything. pyreqwest's native thread lives as long as the process, whatever is closed;
    where it is still letting go of Python's objects while the interpreter goes down, the process aborts.
    """
    with contextlib.suppress(OSError, ValueError):  # a stream that is closed, or whose reader has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def run(command: Callable[[], object]) -> None:
    """Run a command and exit; an expected error becomes lines on standard error, without a traceback.

    Raises:
        SystemExit: always.
    """
    # The gRPC library's own lines on standard error say nothing that ours do not say better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        command()
    except PointillistDestinationError as error:
        for line in str(error).splitlines():
            say(f"{NAME}: {line}")
        sys.exit(COULD_NOT_RUN if isinstance(error, _COULD_NOT_RUN) else NOT_EVERYTHING)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)
