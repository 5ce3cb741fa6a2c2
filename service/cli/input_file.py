"""A file of Segment JSON lines, read lazily: each message, its place in the file, and the importer's result."""

import contextlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

from service.errors import SegmentJsonError, UnreadableFileError
from service.events.segment_json import Imported, Refused, Result, Skipped, import_line

__all__ = ["OTHER_TYPES", "Imported", "Message", "Refused", "SegmentFile", "Skipped", "Source", "on_one_line"]

STANDARD_INPUT = "-"
OTHER_TYPES = frozenset({"page", "screen", "group", "alias", "delete"})
"""Segment's types that Pointillist is not sent; any other that is skipped is likely to be mistyped."""
LONGEST_LINE = 16 * 1024 * 1024  # bytes; a batch body of Segment's API has 500 KB at most


@dataclass(frozen=True, slots=True)
class Source:
    """The place of a message in the file, and its line."""

    line: int
    """The number of its line, counted from one."""

    item: int | None
    """Its index in the batch body that the line is; None where the line is the message."""

    text: bytes
    """The line as it was read, its end included; empty where it is too long to be kept."""

    @property
    def place(self) -> str:
        """Its place, such as `line 12` or `line 16, batch[1]`."""
        return f"line {self.line}" if self.item is None else f"line {self.line}, batch[{self.item}]"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the file, and the importer's result."""

    source: Source
    result: Result

    @property
    def place(self) -> str:
        """Its place, such as `line 12` or `line 16, batch[1]`."""
        return self.source.place


class SegmentFile:
    """Yields the messages of a file, and counts those that cannot be sent; a context manager.

    It holds one line at a time. `skipped` counts messages by type, `ignored` names the top-level keys without a place
    in the contract, in the order in which they were first seen; `lines` is how many were read and `unreadable` how many
    of them are no JSON; `position` is how many bytes were read, `size` how many there are, or None where nobody knows,
    as of a pipe.
    """

    def __init__(self, path: str) -> None:
        """Open the file.

        Args:
            path: the file; `-` for standard input.

        Raises:
            UnreadableFileError: it cannot be opened.
        """
        self.path = path
        self.position = 0
        self.lines = 0
        self.unreadable = 0
        self.skipped: Counter[str] = Counter()
        self.ignored: dict[str, None] = {}
        with self._translated():
            # Not sys.stdin.buffer: a thread that waits in it holds a lock that Python wants when it ends.
            source = 0 if path == STANDARD_INPUT else path
            self._file: BinaryIO = open(source, "rb", closefd=source != 0)  # noqa: SIM115  closed on exit
            status = os.fstat(self._file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing would wait for a thread that waits for a pipe; the system closes that when the process ends.
        if self.size is not None:
            self._file.close()

    def __iter__(self) -> Iterator[Message]:
        """Import line after line.

        Raises:
            UnreadableFileError: reading fails halfway.
        """
        while line := self._read():
            self.lines += 1
            if len(line) > LONGEST_LINE:
                self._skip_rest_of_line(line)
                self.unreadable += 1
                reason = f"has more than {LONGEST_LINE // 1024**2} MiB; one message, or one batch body, is right"
                refused = Refused((SegmentJsonError("", reason),), is_unreadable=True)
                yield Message(Source(self.lines, None, b""), refused)
                continue
            results = import_line(line)
            for index, result in enumerate(results):
                if isinstance(result, Skipped):
                    self.skipped[result.type] += 1
                elif isinstance(result, Imported):
                    self.ignored.update(dict.fromkeys(result.ignored))
                elif result.is_unreadable:
                    self.unreadable += 1
                if len(results) > 1:
                    yield Message(Source(self.lines, index, line), _within(f"batch[{index}]", result))
                else:
                    yield Message(Source(self.lines, None, line), result)

    @property
    def ignored_line(self) -> str | None:
        """Return the closing remark about keys without a place; None if there were none."""
        names = ", ".join(on_one_line(name) for name in self.ignored)
        return f"ignored: {names} (no place for them in the contract)" if names else None

    def _read(self) -> bytes:
        with self._translated():
            line = self._file.readline(LONGEST_LINE + 1)
        self.position += len(line)
        return line

    def _skip_rest_of_line(self, start: bytes) -> None:
        while start and not start.endswith(b"\n"):
            start = self._read()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        name = "standard input" if self.path == STANDARD_INPUT else repr(self.path)
        try:
            yield
        except OSError as error:
            raise UnreadableFileError(f"{name} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a NUL in the path, or a standard input that was closed
            raise UnreadableFileError(f"{name} cannot be read: {error}") from error


def _within(item: str, result: Result) -> Result:
    """Leave the item out of the paths of its faults, because its place names it already."""
    if not isinstance(result, Refused):
        return result
    return Refused(
        tuple(
            SegmentJsonError(error.path.removeprefix(item).removeprefix("."), error.reason) for error in result.errors
        )
    )


def on_one_line(text: str) -> str:
    """Give a name from the file as it is, or in quotes and escaped where it would not stay on one line."""
    return text if text.isprintable() else json.dumps(text).replace("\x7f", "\\u007f")  # JSON leaves DEL as it is
