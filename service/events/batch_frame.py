"""BatchSendRequest with its events left as bytes, read so that one that does not parse spoils nothing but itself.

On the wire a message and a bytes field look the same. So this message, which is not part of the contract, reads a
BatchSendRequest with its events left as bytes, which are then parsed one by one and stored as they came: a bad one is
refused alone, and none is serialised again. A sender of many events writes with it events that are serialised already.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError


class BatchFrame(Protocol):
    """A BatchSendRequest whose events are not parsed yet."""

    sequence: int
    events: Sequence[bytes]


def _message_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="batch_frame.proto", syntax="proto3")
    message = file.message_type.add(name="BatchFrame")
    message.field.add(name="sequence", number=1, type=field.TYPE_UINT64, label=field.LABEL_OPTIONAL)
    message.field.add(name="events", number=2, type=field.TYPE_BYTES, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()  # a pool of its own keeps it out of reflection
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("BatchFrame"))


_BatchFrame = _message_class()


def read_batch(request: bytes) -> BatchFrame:
    """Read a request.

    Raises:
        google.protobuf.message.DecodeError: the bytes are not a BatchSendRequest.
    """
    return cast("BatchFrame", _BatchFrame.FromString(request))


def write_batch(sequence: int, events: Sequence[bytes]) -> bytes:
    """Write a request of events that are serialised already."""
    return cast("bytes", _BatchFrame(sequence=sequence, events=events).SerializeToString())


def count_events(request: bytes) -> int:
    """Return the number of events in a request; bytes that do not parse cost an answer too, and count as one."""
    try:
        return len(read_batch(request).events)
    except DecodeError:
        return 1
