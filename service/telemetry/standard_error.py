"""What libraries write to standard error by themselves: counted and told, and never repeated.

grpc.aio prints a traceback where a call failed whose end could not be sent, besides logging it. It may hold whatever
the caller sent, a token too. gRPC's own core writes to the descriptor, past Python; GRPC_VERBOSITY=NONE keeps it quiet.
"""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import structlog

INTERVAL = 1.0  # seconds between two lines

log = structlog.get_logger()


class LibraryOutput(io.TextIOBase):
    """A stream that takes text, and logs how much there was.

    Args:
        now: seconds, steady.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._told_at = float("-inf")
        self._characters = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Count it; there is a line a second at most."""
        self._characters += len(text)
        now = self._now()
        if now - self._told_at >= INTERVAL:
            self._told_at, count, self._characters = now, self._characters, 0
            log.warning("a library wrote to standard error; its text is left out, as it may repeat input", count=count)
        return len(text)


@contextlib.contextmanager
def without_library_output() -> Iterator[None]:
    """Keep what libraries write out of standard error within the body; errors that end a thread are logged instead.

    The log itself must be configured before.
    """
    earlier_stream, earlier_hook = sys.stderr, threading.excepthook
    sys.stderr = LibraryOutput()
    threading.excepthook = _log_end_of_thread
    try:
        yield
    finally:
        sys.stderr, threading.excepthook = earlier_stream, earlier_hook


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or issubclass(ended.exc_type, SystemExit):
        return
    traceback: TracebackType | None = ended.exc_traceback
    name = "" if ended.thread is None else ended.thread.name
    log.error("a thread ended by an error", thread=name, exc_info=(ended.exc_type, ended.exc_value, traceback))
