"""Logging to files that refuse what is written, and to pipes that nobody reads."""

import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from service.telemetry.log_writer import MAX_CHARACTERS, MAX_LINES, LogWriter
from service.telemetry.logs import configure_logging, dropped_log_lines, flush_logs
from tests.support.waiting import until_blocking

FULL = Path("/dev/full")
NOT_AT_ALL = 0.0  # seconds

needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")


@dataclass
class Pipe:
    """A pipe whose reader reads when it is told to."""

    reader: int
    stream: TextIO
    filling: int = 0
    """Bytes that fill the pipe, and are no log."""
    seen: bytes = b""

    def fill(self) -> None:
        """Leave no room in the pipe."""
        descriptor = self.stream.fileno()
        os.set_blocking(descriptor, False)
        try:
            while True:
                self.filling += os.write(descriptor, b" " * 512)  # each capacity is a multiple of it
        except BlockingIOError:
            os.set_blocking(descriptor, True)

    def read(self) -> str:
        """Read all there is, and return it with all that was read before."""
        try:
            while data := os.read(self.reader, 1 << 20):
                self.seen += data
        except BlockingIOError:
            pass
        return self.seen[self.filling :].decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe; its end lets the threads of writers end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream:
        yield Pipe(reader, stream)
        os.close(reader)


@pytest.fixture
def _logging() -> Iterator[None]:
    """Put logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_lines_are_written_in_their_order(pipe: Pipe) -> None:
    # given
    writer = LogWriter(pipe.stream)

    # when
    for number in range(100):
        writer.write(f"{number}\n")
    writer.close()

    # then
    assert pipe.read().split() == [str(number) for number in range(100)]
    assert writer.dropped == 0


def test_a_line_longer_than_the_pipe_is_written_completely(pipe: Pipe) -> None:
    # given
    writer = LogWriter(pipe.stream)

    # when
    writer.write("é" * 100_000 + "\n")

    # then
    until_blocking(lambda: pipe.read().endswith("\n"))
    assert pipe.read() == "é" * 100_000 + "\n"
    writer.close()


def test_a_pipe_that_another_process_made_non_blocking_is_written_completely(pipe: Pipe) -> None:
    # given
    os.set_blocking(pipe.stream.fileno(), False)
    writer = LogWriter(pipe.stream)

    # when
    writer.write("x" * 100_000 + "\n")

    # then
    until_blocking(lambda: pipe.read().endswith("\n"))
    assert len(pipe.read()) == 100_001
    writer.close()


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_lines_beyond_the_bound_are_counted(pipe: Pipe) -> None:
    # given
    pipe.fill()
    writer = LogWriter(pipe.stream)

    # when
    for _ in range(MAX_LINES + 5):
        writer.write("line\n")

    # then
    assert writer.dropped == 5
    writer.close(NOT_AT_ALL)


def test_the_queue_has_a_bound_in_characters_too(pipe: Pipe) -> None:
    # given
    pipe.fill()
    writer = LogWriter(pipe.stream)
    line = "x" * (MAX_CHARACTERS // 100)

    # when
    for _ in range(107):
        writer.write(line)

    # then
    assert writer.dropped == 7
    writer.close(NOT_AT_ALL)


def test_the_number_of_dropped_lines_is_reported_once_the_queue_is_written(pipe: Pipe) -> None:
    # given
    pipe.fill()
    reports: list[int] = []
    writer = LogWriter(pipe.stream, max_lines=10, report=reports.append)
    for _ in range(13):
        writer.write("line\n")

    # when
    until_blocking(lambda: pipe.read().count("line\n") == 10)

    # then
    until_blocking(lambda: reports)
    assert reports == [3]
    writer.close()


def test_a_reader_that_has_gone_costs_lines_and_nothing_else() -> None:
    # given
    reader, closed = os.pipe()
    os.close(reader)
    with os.fdopen(closed, "w") as stream:
        writer = LogWriter(stream)

    # when
    writer.write("one\n")
    writer.write("two\n")
    writer.close()

    # then
    assert writer.dropped == 2


@needs_full
def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    # given
    with FULL.open("w") as stream:
        writer = LogWriter(stream)

    # when
    writer.write("one\n")
    writer.write("two\n")
    writer.close()

    # then
    assert writer.dropped == 2


def test_a_file_whose_descriptor_was_closed_and_used_again_is_not_mistaken_for_the_log(tmp_path: Path) -> None:
    # given
    stream = (tmp_path / "log").open("w")
    number = stream.fileno()
    writer = LogWriter(stream)
    stream.close()
    with (tmp_path / "outbox").open("w") as other:
        assert other.fileno() == number

        # when
        writer.write("line\n")
        writer.close()

    # then
    assert (tmp_path / "log").read_text() == "line\n"
    assert (tmp_path / "outbox").read_text() == ""


def test_a_closed_stream_costs_lines_and_nothing_else() -> None:
    # given
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)

    # when
    writer.write("line\n")

    # then
    assert writer.dropped == 1
    assert not writer.isatty()


def test_without_standard_error_every_line_is_dropped() -> None:
    # given
    writer = LogWriter(None)

    # when
    writer.write("line\n")

    # then
    assert writer.dropped == 1
    assert not writer.isatty()


def test_a_closed_writer_drops_lines(pipe: Pipe) -> None:
    # given
    writer = LogWriter(pipe.stream)
    writer.close()

    # when
    writer.write("line\n")

    # then
    assert writer.dropped == 1
    assert pipe.read() == ""


# configure_logging


@needs_full
@pytest.mark.usefixtures("_logging")
def test_log_lines_that_a_full_disk_refuses_raise_nothing_and_are_counted() -> None:
    # given
    with FULL.open("w") as stream:
        configure_logging("info", "json", stream)

    # when
    structlog.get_logger().warning("one")
    logging.getLogger("grpc").warning("two")
    flush_logs()

    # then
    assert dropped_log_lines() == 2


@pytest.mark.usefixtures("_logging")
def test_a_record_that_cannot_be_formatted_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    # given
    configure_logging("info", "json", io.StringIO())

    # when
    logging.getLogger("grpc").warning("%d", "no number")

    # then
    assert dropped_log_lines() == 1
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("_logging")
def test_the_log_says_how_many_lines_are_missing_once_it_is_read_again(pipe: Pipe) -> None:
    # given
    pipe.fill()
    configure_logging("info", "json", pipe.stream)
    for _ in range(MAX_LINES + 3):
        structlog.get_logger().info("line")

    # when
    until_blocking(lambda: "log lines dropped" in pipe.read())

    # then
    flush_logs()
    lines = [json.loads(line) for line in pipe.read().splitlines()]
    assert [line["event"] for line in lines[:-1]] == ["line"] * MAX_LINES
    assert (lines[-1]["event"], lines[-1]["level"], lines[-1]["count"]) == ("log lines dropped", "warning", 3)


@pytest.mark.usefixtures("_logging")
def test_configuring_logging_again_writes_the_lines_of_the_earlier_stream(pipe: Pipe) -> None:
    # given
    configure_logging("info", "json", pipe.stream)
    structlog.get_logger().info("one")

    # when
    configure_logging("info", "json", io.StringIO())

    # then
    assert json.loads(pipe.read())["event"] == "one"
