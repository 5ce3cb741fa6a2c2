"""The file of rejected messages: a JSON object per line, with the reasons and the line, to correct and send again.

    {"line": 12, "message_id": "", "reasons": [{"field": "event", "description": "track without …"}], "text": "{…}"}

`line` counts from one; `text` is the line as it stands in the file that was sent, without its end. One that is not
UTF-8 has `text_base64` in its place, and one that is too long to be kept has neither. A message out of a batch body has
`batch_index`, too, and `text` is the body with that message alone, so that sending it again does not send its
neighbours a second time.
"""

import base64
import contextlib
import json
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2

from pointillist_destination.v1 import event_service_pb2
from service.cli.input_file import Source
from service.errors import OutputError, SettingsError
from service.events.segment_json import Refused, only_item


class Reason(NamedTuple):
    """One fault of a message."""

    field: str
    """The path of the error, in Segment's names if this side found it and in the contract's if the server did, such as
    `context.device.version` or `track.user_id`; empty where it is the whole message."""

    description: str
    """The error, and a valid form."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One message that was not taken."""

    place: str
    """Its place in the file, such as `line 12`."""

    message_id: str
    """Its message_id; empty where it was refused before it had one."""

    words: str
    """The reason, on one line."""

    reasons: tuple[Reason, ...]
    """The reasons, one per error."""

    def __str__(self) -> str:
        """Write it on one line."""
        return f"{self.place}: {self.message_id}: {self.words}" if self.message_id else f"{self.place}: {self.words}"

    @classmethod
    def of_reader(cls, place: str, refused: Refused) -> Self:
        """One that was never sent."""
        reasons = tuple(Reason(error.path, error.reason) for error in refused.errors)
        return cls(place, "", "; ".join(str(error) for error in refused.errors), reasons)

    @classmethod
    def of_server(cls, place: str, rejection: event_service_pb2.Rejection) -> Self:
        """One that the server refused; where there are many it gives the later ones without details."""
        status = rejection.status
        bad_request = error_details_pb2.BadRequest()
        reasons: tuple[Reason, ...] = (Reason("", status.message),)
        for detail in status.details:
            try:
                if detail.Unpack(bad_request):
                    found = bad_request.field_violations
                    reasons = tuple(Reason(violation.field, violation.description) for violation in found)
            except DecodeError:
                continue  # a server of another make; its words are there all the same
        return cls(place, rejection.message_id, status.message, reasons)


class RefusedFile:
    """Appends rejected messages, from any thread; a context manager.

    Each object is handed to the system at once, so that those written stay whatever becomes of this process.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Args:
            path: a file that does not exist or is empty, or something that is no regular file, such as a pipe.

        Raises:
            SettingsError: it holds something already.
            OutputError: it cannot be opened.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("ab")  # appends, so that nothing is lost even to a race
            status = os.fstat(self._file.fileno())
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        if stat.S_ISREG(status.st_mode) and status.st_size:
            self._file.close()
            raise SettingsError(
                f"--refused: {path} holds something already, which is not written over; name a new file, or remove that"
                " one: sending a file again reports all of its rejected messages again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Everything was flushed when it was written; an error was reported then, and must not be raised again.
        with self._lock, contextlib.suppress(OSError):
            self._file.close()

    def write(self, source: Source, rejection: Rejection) -> None:
        """Append one message that was refused.

        Raises:
            OutputError: it cannot be written, as on a full disk.
        """
        # Half a character out of a JSON escape, which UTF-8 cannot hold, becomes that escape again.
        written = json.dumps(_described(source, rejection), ensure_ascii=False).encode(errors="backslashreplace")
        with self._lock:
            if self._file.closed:  # it has ended, while a thread was still reading ahead
                return
            try:
                self._file.write(written + b"\n")
                self._file.flush()
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError | ValueError) -> OutputError:
        reason = error.strerror if isinstance(error, OSError) else error
        return OutputError(f"--refused: {self._path} cannot be written: {reason}")


def _described(source: Source, rejection: Rejection) -> dict[str, Any]:
    described: dict[str, Any] = {"line": source.line}
    line = source.text
    if source.item is not None:
        described["batch_index"] = source.item
        line = only_item(line, source.item)
    described["message_id"] = rejection.message_id
    described["reasons"] = [reason._asdict() for reason in rejection.reasons]
    line = line.removesuffix(b"\n")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return described | {"text_base64": base64.b64encode(line).decode()}
    return described | {"text": text} if source.text else described
