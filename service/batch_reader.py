"""Reading a file of Segment messages into batches, on a thread of its own.

Reading a pipe can wait for ever, which the event loop cannot; and the thread is one that Python need not wait for when
it ends, as somebody who presses Ctrl-C does not want to either.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pointillist_destination.v1 import event_service_pb2
from service.message_id import derived_message_id
from service.segment_file import Imported, Refused, SegmentFile

BATCHES_AHEAD = 2  # read and not asked for yet
BATCH_BYTES_MOST = 2 * 1024 * 1024  # bytes of one request; the server takes twice as many


@dataclass(frozen=True, slots=True)
class Rejection:
    """One message that was not taken, by this side or by the server."""

    place: str
    """Where it stands in the file, such as `line 12`."""

    message_id: str
    """Its message_id; empty where it was refused before it had one."""

    reason: str

    def __str__(self) -> str:
        """Write it on one line."""
        return f"{self.place}: {self.message_id}: {self.reason}" if self.message_id else f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Batch:
    """One request, ready to be sent, and sent again."""

    request: event_service_pb2.BatchSendRequest

    places: list[str]
    """Where each event stands in the file."""

    end: int
    """How many bytes of the file were read when it was full."""


class BatchReader:
    """Gives batches as they are asked for; it reads no more than a little ahead."""

    def __init__(self, file: SegmentFile, batch_size: int, reject: Callable[[Rejection], None]) -> None:
        """Begin to read; to be called where an event loop runs.

        Args:
            file: what to read.
            batch_size: events in one batch, at most.
            reject: told, on the reader's thread, of each message that is refused.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(BATCHES_AHEAD)
        self._at_end = False
        self._batches = _batches(file, batch_size, reject)
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    async def next(self) -> Batch | None:
        """Wait for the next batch; None after the last one. Nothing is lost where the waiting is cancelled.

        Raises:
            UnreadableFileError: reading the file failed.
        """
        if self._at_end:
            return None
        batch = await self._queue.get()
        if isinstance(batch, Batch):
            return batch
        self._at_end = True
        if batch is not None:
            raise batch
        return None

    def _run(self) -> None:
        try:
            for batch in self._batches:
                self._put(batch)
            self._put(None)
        except RuntimeError:  # the loop has ended before the file has
            return
        except Exception as error:  # noqa: BLE001  it is raised where the batch is asked for
            self._put(error)

    def _put(self, item: Batch | Exception | None) -> None:
        asyncio.run_coroutine_threadsafe(self._queue.put(item), self._loop).result()


def _batches(file: SegmentFile, batch_size: int, reject: Callable[[Rejection], None]) -> Iterator[Batch]:
    """Put a file's messages into batches as they are asked for; what is refused is told at once."""
    sequence = size = 0
    request, places = event_service_pb2.BatchSendRequest(sequence=sequence), list[str]()
    for message in file:
        if isinstance(message.result, Refused):
            reason = "; ".join(str(error) for error in message.result.errors)
            reject(Rejection(message.place, "", reason))
        if not isinstance(message.result, Imported):
            continue
        event = message.result.event
        body = event.track if event.HasField("track") else event.identify
        if not body.message_id:
            body.message_id = derived_message_id(message.place, event.SerializeToString(deterministic=True))
        size += event.ByteSize()
        request.events.append(event)
        places.append(message.place)
        if len(places) >= batch_size or size >= BATCH_BYTES_MOST:
            yield Batch(request, places, file.position)
            sequence, size = sequence + 1, 0
            request, places = event_service_pb2.BatchSendRequest(sequence=sequence), []
    if places:
        yield Batch(request, places, file.position)
