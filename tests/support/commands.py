"""Commands run in this process, for what needs no process: refusals, help, exit codes, and output of ordinary size."""

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from unittest import mock

import structlog

from service.cli.main import main
from tests.support.processes import Ended, environment


def call(*arguments: str, given: bytes = b"", environ: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end as its entry point does, with files for the standard streams.

    It must be called where no event loop runs, because commands run their own.

    Args:
        arguments: what stands behind the command's name.
        given: standard input.
        environ: settings; the command sees no others.
    """
    with (
        _stream(0, given),
        _stream(1) as out,
        _stream(2) as err,
        _logging_restored(),
        mock.patch.object(sys, "argv", ["pointillist-destination", *arguments]),
        mock.patch.dict(os.environ, environment(environ), clear=True),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        else:
            raise AssertionError("the command returned instead of exiting")
        said = [_read(file) for file in (out, err)]
    assert isinstance(code, int)
    return Ended(code, *said)


@contextlib.contextmanager
def _stream(number: int, content: bytes = b"") -> Iterator[io.BufferedRandom]:
    """Put a file that holds the content in the place of a standard stream."""
    name = ("stdin", "stdout", "stderr")[number]
    original = os.dup(number)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        os.dup2(file.fileno(), number)
        text = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        try:
            with text, mock.patch.object(sys, name, text):
                yield file
        finally:
            os.dup2(original, number)
            os.close(original)


def _read(file: io.BufferedRandom) -> str:
    """The whole content of a stream's file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file.seek(0)
    return file.read().decode()


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """Take back what a command configures for its process."""
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**config)
        logging.captureWarnings(capture=False)
