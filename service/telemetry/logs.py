"""Log lines on standard error: JSON for machines, text for a terminal.

Code that logs uses `structlog.get_logger()`.
"""

import json
import logging
import sys
from typing import TextIO

import orjson
import structlog
from structlog.types import EventDict, Processor, WrappedLogger


def configure_logging(level: str, log_format: str | None, stream: TextIO | None = None) -> None:
    """Send every log line, those of libraries too, to one stream in one form.

    A line has `timestamp` (ISO 8601, UTC), `level`, `event` and whatever fields were given; an exception is the text of
    its traceback, without local variables, as these may hold the token. Libraries are heard from `warning` up, whatever
    `level` is, because their debug lines repeat headers.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json`, `text`, or `None` for text on a terminal and JSON elsewhere.
        stream: where to write; standard error by default.
    """
    target = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    as_text = log_format == "text" or (log_format is None and target.isatty())
    prepare: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor]
    if as_text:
        console = structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        render = [console]
    else:
        render = [structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=[*prepare, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        # A cached logger would go on writing to the stream of an earlier call.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
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


def set_log_level(level: str) -> None:
    """Drop lines below `level` from now on; libraries stay at `warning` and above."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(threshold))
    logging.getLogger().setLevel(max(threshold, logging.WARNING))


def _render_json(_logger: WrappedLogger, _method: str, fields: EventDict) -> str:
    """Write one line of JSON, also where orjson alone would refuse: a log line must never fail."""
    try:
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a lone surrogate, an integer beyond 64 bits
        return json.dumps(fields, default=repr, skipkeys=True)
