"""Reading a file of Segment messages into batches, on a thread of its own.

Reading a pipe can wait for ever, which the event loop cannot; and the thread is one that Python need not wait for when
it ends, as somebody who presses Ctrl-C does not want to either.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from service.cli.input_file import Imported, Refused, SegmentFile, Source
from service.cli.send.refused import Rejection
from service.events.batch_frame import write_batch
from service.events.message import known_message_of
from service.events.message_id import derived_message_id

Reject: TypeAlias = Callable[[Source, Rejection], None]
"""Told of each message that is not taken."""

BATCHES_AHEAD = 2  # read and not asked for yet
MAX_BATCH_BYTES = 2 * 1024 * 1024  # bytes of one request; the server takes twice as many
MAX_BATCH_LINES = 4 * 1024 * 1024  # bytes of the lines that are kept until they are answered, in case of a refusal


@dataclass(frozen=True, slots=True)
class Batch:
    """One request, ready to be sent, and sent again."""

    sequence: int

    request: bytes
    """A BatchSendRequest, serialised."""

    sources: list[Source]
    """The place of each event in the file."""


class BatchReader:
    """Gives batches as they are asked for; it reads no more than a little ahead."""

    def __init__(self, file: SegmentFile, batch_size: int, reject: Reject) -> None:
        """Begin to read; to be called where an event loop runs.

        Args:
            file: the messages.
            batch_size: events in one batch, at most.
            reject: called, on the reader's thread, with each message that is refused.
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
        with contextlib.suppress(_NobodyAsksError):
            try:
                for batch in self._batches:
                    self._put(batch)
                self._put(None)
            except _NobodyAsksError:
                raise
            except Exception as error:  # noqa: BLE001  it is raised where the batch is asked for
                self._put(error)

    def _put(self, item: Batch | Exception | None) -> None:
        putting = self._queue.put(item)
        try:
            asyncio.run_coroutine_threadsafe(putting, self._loop).result()
        except (RuntimeError, concurrent.futures.CancelledError) as error:
            putting.close()
            raise _NobodyAsksError from error


class _NobodyAsksError(Exception):
    """The event loop has ended before the file has."""


def _batches(file: SegmentFile, batch_size: int, reject: Reject) -> Iterator[Batch]:
    """Put a file's messages into batches on demand; refused messages are reported at once."""
    sequence = size = lines = 0
    events, sources = list[bytes](), list[Source]()
    for message in file:
        source, result = message.source, message.result
        if isinstance(result, Refused):
            reject(source, Rejection.of_reader(source.place, result))
        if not isinstance(result, Imported):
            continue
        event = result.event
        body = known_message_of(event)
        if not body.message_id:
            body.message_id = derived_message_id(source.place, event.SerializeToString(deterministic=True))
        # Once and for all: an event that is copied into a request, measured and serialised there costs twice as much.
        events.append(event.SerializeToString())
        size += len(events[-1])
        if not sources or sources[-1].line != source.line:  # the messages of one batch body share its line
            lines += len(source.text)
        sources.append(source)
        if len(events) >= batch_size or size >= MAX_BATCH_BYTES or lines >= MAX_BATCH_LINES:
            yield Batch(sequence, write_batch(sequence, events), sources)
            sequence, size, lines = sequence + 1, 0, 0
            events, sources = [], []
    if events:
        yield Batch(sequence, write_batch(sequence, events), sources)
