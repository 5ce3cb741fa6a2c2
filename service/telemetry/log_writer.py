"""Writes log lines on a thread of its own, so that a full disk or a stuck reader does not affect the code that logs."""

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

MAX_LINES = 10_000
MAX_CHARACTERS = 8 * 1024 * 1024


class LogWriter:
    """A file-like object for log lines; writing to it never blocks and never raises.

    Lines go through a bounded queue to a daemon thread. Lines beyond the bounds, and those that cannot be written, are
    dropped and counted. A stream without a file descriptor, such as `io.StringIO`, is written to directly.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        max_lines: int = MAX_LINES,
        max_characters: int = MAX_CHARACTERS,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Start the thread.

        Args:
            stream: where to write; None drops every line, as `sys.stderr` is None if the process started without one.
            max_lines: bound of the queue in lines.
            max_characters: bound of the queue in characters.
            report: called on the thread with the number of lines dropped since its last call, once the queue is written
                again; it may log.
        """
        self.dropped = 0
        """Number of lines dropped so far."""
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._max_lines = max_lines
        self._max_characters = max_characters
        self._report = report
        self._reported = 0
        # Its lock is reentrant: a finalizer that runs inside `write` may log.
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._characters = 0
        self._is_closed = False
        # A duplicate, as the number of a descriptor that others close may come to be that of another file.
        self._descriptor = _duplicate(stream)
        if self._descriptor is not None:
            threading.Thread(target=self._run, args=(self._descriptor,), name="log-writer", daemon=True).start()

    def write(self, line: str) -> int:
        """Queue one line, with its newline, or drop it; return its length either way."""
        if self._descriptor is None:
            self._write_directly(line)
            return len(line)
        with self._changed:
            if (
                self._is_closed
                or len(self._lines) >= self._max_lines
                or self._characters + len(line) > self._max_characters
            ):
                self.dropped += 1
            else:
                self._lines.append(line)
                self._characters += len(line)
                self._changed.notify_all()
        return len(line)

    def flush(self) -> None:
        """Do nothing: loggers call this after each line, and it must not block; see `drain`."""

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def drop(self) -> None:
        """Count a line that was lost before it could be queued."""
        with self._changed:
            self.dropped += 1

    def drain(self, seconds: float = 1.0) -> None:
        """Wait until the queue is written, for so many seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, seconds)

    def close(self, seconds: float = 1.0) -> None:
        """Take no more lines, and wait as `drain` does; the thread ends once the queue is written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.drain(seconds)

    # -- writing

    def _write_directly(self, line: str) -> None:
        try:
            if self._stream is None:
                self.drop()
            else:
                self._stream.write(line)
                self._stream.flush()
        except (OSError, ValueError):
            self.drop()

    def _run(self, descriptor: int) -> None:
        """Write line by line until the writer is closed and the queue empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_closed)
                if not self._lines:
                    break
                line = self._lines[0]
            is_written = _write_all(descriptor, line.encode(self._encoding, "backslashreplace"))
            with self._changed:
                # Only now: a line that is being written counts for the bounds, and for `drain`.
                self._lines.popleft()
                self._characters -= len(line)
                self.dropped += not is_written
                is_idle = not self._lines
                if is_idle:
                    self._changed.notify_all()
            if is_written and is_idle:
                self._report_dropped()
        os.close(descriptor)

    def _report_dropped(self) -> None:
        dropped = self.dropped - self._reported
        self._reported += dropped
        if dropped:
            with contextlib.suppress(Exception):  # the thread goes on, whatever the report comes to
                self._report(dropped)


def _duplicate(stream: TextIO | None) -> int | None:
    """Duplicate the descriptor of a stream; None where it has none that is open."""
    try:
        return None if stream is None else os.dup(stream.fileno())
    except (OSError, ValueError):
        return None


def _write_all(descriptor: int, data: bytes) -> bool:
    """Write data completely, however long it takes; return False if the file refuses it."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another process has made the pipe that it shares with this one non-blocking
            writable = select.poll()
            writable.register(descriptor, select.POLLOUT)
            writable.poll()
        except OSError:
            return False
    return True
