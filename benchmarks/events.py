"""The events that all rows send: the larger track events of the tests' data, 1.2 kB each on average.

A message's length on the wire does not depend on what its message_id says, as long as that is always as long. So a
message is serialised once, cut where the message_id stands, and put together again with another for each use: a load
generator that costs next to nothing, and bytes that differ from one event to the next as they do in life.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.message import Message

from pointillist_destination.v1 import event_pb2, event_service_pb2
from service.events.integrations import is_sent
from service.events.segment_json import Imported, import_line

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "segment_events.jsonl"
MIN_SIZE = 900  # bytes of a serialised Event; smaller ones are not what a shop sends
PLACEHOLDER = "message-id-of-as-many-characters-uid"  # as long as a UUID
EVENTS_KEY = b"\x12"  # field 2 of BatchSendRequest, length-delimited
SEQUENCE_KEY = b"\x08"  # field 1 of BatchSendRequest, varint
GRPC_PREFIX = struct.Struct(">BI")  # not compressed, and the length


@dataclass(frozen=True, slots=True)
class Template:
    """A serialised message, cut where its message_id stands."""

    before: bytes
    after: bytes

    def with_id(self, message_id: str) -> bytes:
        """The bytes of the message with another message_id, as long as a UUID."""
        return self.before + message_id.encode() + self.after


def message_ids(run: str) -> Iterator[str]:
    """Ids as long as a UUID, different for each run.

    Args:
        run: a name of this run, of 20 characters at most.
    """
    number = 0
    while True:
        yield f"{run}{number:0{len(PLACEHOLDER) - len(run)}d}"
        number += 1


def imported() -> list[event_pb2.Event]:
    """Every event of the data, identifies and the smallest included."""
    with DATA.open("rb") as lines:
        return [result.event for line in lines for result in import_line(line) if isinstance(result, Imported)]


@cache
def tracks() -> tuple[event_pb2.Event, ...]:
    """The track events of the usual size that are not kept from Pointillist, each with the placeholder as its id."""
    chosen = [
        event
        for event in imported()
        if event.HasField("track") and event.ByteSize() >= MIN_SIZE and is_sent(event.track.integrations)
    ]
    for event in chosen:
        event.track.message_id = PLACEHOLDER
    return tuple(chosen)


def event_templates() -> list[Template]:
    """Templates of Event."""
    return [_cut(event) for event in tracks()]


def track_templates() -> list[Template]:
    """Templates of TrackRequest."""
    return [_cut(event_service_pb2.TrackRequest(track=event.track)) for event in tracks()]


def batches(run: str, count: int, size: int) -> Iterator[bytes]:
    """Serialised BatchSendRequests, with ids of their own.

    Args:
        run: see `message_ids`.
        count: how many.
        size: events in each.
    """
    templates, ids = event_templates(), message_ids(run)
    for sequence in range(1, count + 1):
        parts = [SEQUENCE_KEY, varint(sequence)]
        for index in range(size):
            event = templates[(sequence * size + index) % len(templates)].with_id(next(ids))
            parts += (EVENTS_KEY, varint(len(event)), event)
        yield b"".join(parts)


def track_requests(run: str, count: int) -> Iterator[tuple[str, bytes]]:
    """Serialised TrackRequests and their message_ids."""
    templates = track_templates()
    for index, message_id in zip(range(count), message_ids(run), strict=False):
        yield message_id, templates[index % len(templates)].with_id(message_id)


def framed_track_request() -> bytes:
    """The body of a unary gRPC call of Track, for a load generator that sends one body again and again.

    It has no message_id, so that the server gives each event one of its own.
    """
    event = event_pb2.Event()
    event.CopyFrom(min(tracks(), key=lambda event: abs(event.ByteSize() - 1200)))
    event.track.message_id = ""
    request = event_service_pb2.TrackRequest(track=event.track).SerializeToString()
    return GRPC_PREFIX.pack(0, len(request)) + request


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _cut(message: Message) -> Template:
    before, after = message.SerializeToString().split(PLACEHOLDER.encode())
    return Template(before, after)
