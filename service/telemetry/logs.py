"""Log lines on standard error: JSON for machines, text for a terminal.

Code that logs uses `structlog.get_logger()`.
"""

import io
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final, TextIO, cast

import orjson
import structlog
from structlog.types import EventDict, ExcInfo, Processor, WrappedLogger

from service.telemetry.allowance import Allowance
from service.telemetry.log_writer import LogWriter
from service.telemetry.visible_text import visible, visible_json, visible_lines

NO_INPUT: Final = ("grpc._cython.cygrpc", "asyncio")  # loggers whose records repeat what callers sent
LIBRARY_LINES: Final = 1.0  # a second, of each of them
MAX_LIBRARY_LINES: Final = 5  # at once
_BEFORE_INPUT: Final = re.compile(r"[^\[%'\"<{(:\n]{0,200}")  # the text of a record, up to what may be a caller's

log = structlog.get_logger()


def configure_logging(level: str, log_format: str | None, stream: TextIO | None = None) -> None:
    """Send every log line, those of libraries too, to one stream in one form.

    A line has `timestamp` (ISO 8601, UTC), `level`, `event` and whatever fields were given; an exception is the text of
    its traceback, without local variables, as these may hold the token. Libraries are heard from `warning` up, whatever
    `level` is, because their debug lines repeat headers.

    Lines are written by a thread: a stream that cannot be written, or that nobody reads, costs lines and nothing else.
    At an orderly exit the queued lines are written, for a second at most.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json`, `text`, or `None` for text on a terminal and JSON elsewhere.
        stream: where to write; standard error by default.
    """
    _close_earlier_writers()
    target = LogWriter(sys.stderr if stream is None else stream, report=_report_dropped)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    as_text = log_format == "text" or (log_format is None and target.isatty())
    prepare: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor]
    if as_text:
        console = structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=_write_traceback)
        render = [_make_visible, console]
    else:
        render = [structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=[*prepare, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", target)),
        # A cached logger would go on writing to the stream of an earlier call.
        cache_logger_on_first_use=False,
    )
    handler = _Handler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*prepare, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(capture=True)
    for name in NO_INPUT:
        logging.getLogger(name).filters[:] = [_NoInput()]


def set_log_level(level: str) -> None:
    """Drop lines below `level` from now on; libraries stay at `warning` and above."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(threshold))
    logging.getLogger().setLevel(max(threshold, logging.WARNING))


def flush_logs() -> None:
    """Wait until the lines logged so far are written, for a second at most.

    An exit through `sys.exit` does this by itself; one through `os._exit` does not.
    """
    for handler in _handlers():
        handler.stream.drain()


def dropped_log_lines() -> int:
    """Return the number of lines that could not be written since logging was configured."""
    return sum(handler.stream.dropped for handler in _handlers())


class _NoInput(logging.Filter):
    """Keeps a caller's bytes out of the records of libraries that repeat them.

    An error's type and place are left, and how the text begins. grpc.aio logs metadata and paths that are not UTF-8
    with the bytes themselves, tokens included, and asyncio repeats such an error where it ended a task. Above an
    allowance a second, records are dropped and counted.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._allowance = Allowance(MAX_LIBRARY_LINES, LIBRARY_LINES, now())

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the text of a record, or drop it."""
        if not self._allowance.take(self._now()):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(record.msg, BaseException):
            error, text = record.msg, "failed"
        else:
            text = _BEFORE_INPUT.match(str(record.msg)).group().rstrip()  # type: ignore[union-attr]  # it always matches
        if error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
            text = f"{text}: {type(error).__name__}{place}"
        record.msg = text
        if suppressed := self._allowance.told():
            record.msg += f" ({suppressed} such lines left out before)"
        record.args, record.exc_info, record.exc_text, record.stack_info = (), None, None, None
        return True


class _Handler(logging.StreamHandler[LogWriter]):
    """Passes the lines of libraries to the writer; owns the writer."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  logging's own name
        """Count a record that cannot be formatted, where logging would print a traceback."""
        self.stream.drop()

    def close(self) -> None:
        """Close the writer; `logging` calls this at the interpreter's exit."""
        self.stream.close()
        super().close()


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]


def _close_earlier_writers() -> None:
    for handler in _handlers():
        handler.close()


def _report_dropped(count: int) -> None:
    log.warning("log lines dropped", count=count)


def _make_visible(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Escape what a terminal would obey: a value may be what a caller, or Pointillist, sent."""
    return {key: visible(value) if isinstance(value, str) else value for key, value in fields.items()}


def _write_traceback(stream: TextIO, error: ExcInfo) -> None:
    """Write a traceback on lines of its own."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    stream.write(visible_lines(text.getvalue()))


def _render_json(_logger: WrappedLogger, _method: str, fields: EventDict) -> str:
    """Write one line of JSON, also where orjson alone would refuse: a log line must never fail."""
    try:
        return visible_json(orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode())
    except TypeError:  # a lone surrogate, an integer beyond 64 bits
        return json.dumps(fields, default=repr, skipkeys=True)
