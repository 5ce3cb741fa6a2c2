"""A message that was not taken, by this side or by the server, and why."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2

from pointillist_destination.v1 import event_service_pb2
from service.events.segment_json import Refused


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
