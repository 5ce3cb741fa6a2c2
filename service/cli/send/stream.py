"""Sending a file of Segment messages through BatchSend, as any caller of the service can.

Several batches are under way at once, and no more: when the server stops reading, so does this. A stream that breaks is
opened again and goes on from the first batch that was not answered. Each event has its message_id before it is sent,
so that one that is sent again is a duplicate to the server and not a second event. An event without one is given one
that follows from its content and its place in the file, so that this holds for a whole file that is sent again, too.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from google.rpc import error_details_pb2

from pointillist_destination.v1.event_service_pb2 import DESCRIPTOR, BatchSendResponse
from service.cli.client import Target, error_details, is_from_server, no_server, open_aio_channel
from service.cli.input_file import SegmentFile, Source
from service.cli.send.batches import Batch, BatchReader
from service.cli.send.refused import RefusedFile, Rejection
from service.errors import SendingError

BATCHES_UNDER_WAY = 8  # sent and not answered; enough to keep the server's disk busy
REJECTIONS_KEPT = 20  # beyond them only the count remembers
CONNECT_PATIENCE = 5.0  # seconds to reach the server for the first time
RESUME_PATIENCE = 120.0  # seconds without a stream, since the last answer, until it is given up; a roll-out takes less
# Seconds before a broken stream is opened again, where the server does not say: doubled from the first to the last, as
# the service config for callers has it.
RESUME_DELAY, MAX_RESUME_DELAY = 0.2, 5.0

AGAIN = "send the same file again to go on: what was accepted is a duplicate then"

BREAKS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})
"""The codes of gRPC's client for a connection that breaks during a call, besides UNAVAILABLE."""

_METHOD = f"/{DESCRIPTOR.services_by_name['EventService'].full_name}/BatchSend"
_Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, BatchSendResponse]"

_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),  # finds a server that is gone without a word
    ("grpc.keepalive_timeout_ms", 10_000),
)


@dataclass(slots=True)
class Summary:
    """The outcome of the messages of a file so far."""

    accepted: int = 0
    duplicates: int = 0
    filtered: int = 0
    rejected: int = 0
    rejections: list[Rejection] = field(default_factory=list)
    """The first of those rejected."""

    sent_again: int = 0
    """Events that were sent a second time, because the stream broke before they were answered."""

    was_reached: bool = False
    """True once a server was reached."""

    is_connected: bool = False
    """True while a server is reached."""

    @property
    def answered(self) -> int:
        """The number of events that the server has answered, or this side refused."""
        return self.accepted + self.duplicates + self.filtered + self.rejected

    def reject(self, rejection: Rejection) -> None:
        """Count a message that was not taken."""
        self.rejected += 1
        if len(self.rejections) < REJECTIONS_KEPT:
            self.rejections.append(rejection)


async def send(
    file: SegmentFile,
    target: Target,
    batch_size: int,
    *,
    refused: RefusedFile | None = None,
    summary: Summary | None = None,
) -> Summary:
    """Send all that a file holds.

    Args:
        file: the file; the reasons of skipped lines are counted there.
        target: the server.
        batch_size: events in one request, at most.
        refused: gets each message that is not taken.
        summary: an empty one, kept up to date meanwhile for who wants to look.

    Returns:
        The summary.

    Raises:
        SendingError: the server cannot be reached, or not any more, or does not want the stream.
        UnreadableFileError: reading the file fails halfway.
        OutputError: the file of rejected messages cannot be written.
    """
    summary = summary or Summary()
    async with open_aio_channel(target, _CHANNEL_OPTIONS) as channel:
        await _Sending(channel, file, target, batch_size, refused=refused, summary=summary).run()
    return summary


class _Sending:
    """One file on its way through one channel, over as many streams as it takes."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        file: SegmentFile,
        target: Target,
        batch_size: int,
        *,
        refused: RefusedFile | None,
        summary: Summary,
    ) -> None:
        self._channel = channel
        self._target = target.address
        self._no_server = no_server(target)
        self._metadata = target.metadata
        self._refused = refused
        self._summary = summary
        self._lock = threading.Lock()
        self._batches = BatchReader(file, batch_size, self._reject)
        self._unanswered: deque[Batch] = deque()
        self._room = asyncio.Semaphore(BATCHES_UNDER_WAY)
        self._patience = CONNECT_PATIENCE
        self._breaks = 0  # since the last answer

    async def run(self) -> None:
        while True:
            await self._connect()
            try:
                await self._stream()
            except grpc.aio.AioRpcError as error:
                self._summary.is_connected = False
                self._patience -= (delay := self._delay_before_next(error))
                if self._patience <= 0:
                    raise self._broken(error) from error
                await asyncio.sleep(delay)
                self._summary.sent_again += sum(len(batch.sources) for batch in self._unanswered)
            else:
                return

    async def _connect(self) -> None:
        """Wait until the server is there, as long as patience lasts."""
        began = time.monotonic()
        try:
            await asyncio.wait_for(self._channel.channel_ready(), self._patience)
        except TimeoutError as error:
            if self._summary.was_reached:
                raise SendingError(
                    f"{self._target}: the server went away and did not come back within {RESUME_PATIENCE:.0f} s;"
                    f" {self._so_far()}"
                ) from error
            raise SendingError(self._no_server) from error
        self._patience -= time.monotonic() - began
        if not self._summary.was_reached:
            self._summary.was_reached, self._patience = True, RESUME_PATIENCE
        self._summary.is_connected = True

    async def _stream(self) -> None:
        """Open a stream, and write and read until all is answered; raises AioRpcError where it breaks."""
        # Not through the stub, which would serialise requests that are serialised already.
        method: grpc.aio.StreamStreamMultiCallable[bytes, BatchSendResponse] = self._channel.stream_stream(
            _METHOD, response_deserializer=BatchSendResponse.FromString
        )
        call = method(metadata=self._metadata)
        writing, reading = asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call))
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()  # a file that cannot be read on ends it all
            await reading
        finally:
            for task in (writing, reading):
                task.cancel()
            call.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)
        if self._unanswered or not writing.done() or writing.cancelled():
            raise SendingError(f"{self._target}: the server ended the stream before its last answer; {self._so_far()}")

    async def _write(self, call: _Call) -> None:
        """Send the unanswered batches again, then the next ones; wait while enough are in flight."""
        # A stream that has broken says so to the reader; the writer only learns that nothing can be written.
        with contextlib.suppress(asyncio.InvalidStateError):
            for batch in tuple(self._unanswered):
                await call.write(batch.request)
            while (following := await self._next()) is not None:
                self._unanswered.append(following)
                await call.write(following.request)
            await call.done_writing()

    async def _next(self) -> Batch | None:
        """Wait until less is under way, and until there is a batch; None after the last one."""
        await self._room.acquire()
        batch = None
        try:
            batch = await self._batches.next()
        finally:
            if batch is None:
                self._room.release()
        return batch

    async def _read(self, call: _Call) -> None:
        """Count answers until the server ends the stream."""
        while isinstance(answer := await call.read(), BatchSendResponse):
            self._take(answer)

    def _take(self, answer: BatchSendResponse) -> None:
        """Count an answer; the server gives them in the order of the requests."""
        batch = self._unanswered[0] if self._unanswered else None
        if batch is None or batch.sequence != answer.sequence:
            raise SendingError(f"{self._target}: the server answered batch {answer.sequence} out of turn")
        self._unanswered.popleft()
        self._room.release()
        self._patience, self._breaks = RESUME_PATIENCE, 0
        summary = self._summary
        summary.accepted += answer.accepted
        summary.duplicates += answer.duplicates
        summary.filtered += answer.filtered
        for rejection in answer.rejections:
            source = batch.sources[rejection.index]
            self._reject(source, Rejection.of_server(source.place, rejection))

    def _reject(self, source: Source, rejection: Rejection) -> None:
        with self._lock:  # the reader's thread comes here too
            self._summary.reject(rejection)
        if self._refused is not None:
            self._refused.write(source, rejection)

    def _delay_before_next(self, error: grpc.aio.AioRpcError) -> float:
        """Seconds to wait before the stream is opened again.

        Raises:
            SendingError: trying again makes no sense.
        """
        delay = delay_before_next(error, self._breaks)
        if delay is None:
            raise self._broken(error) from error
        self._breaks += 1
        return delay

    def _broken(self, error: grpc.aio.AioRpcError) -> SendingError:
        words = " ".join((error.details() or "").split())
        return SendingError(f"{self._target}: the stream broke: {error.code().name}: {words}; {self._so_far()}")

    def _so_far(self) -> str:
        return f"{self._summary.accepted} events were accepted until then; {AGAIN}"


def delay_before_next(error: grpc.Call | grpc.aio.AioRpcError, breaks: int = 0) -> float | None:
    """Seconds after which a stream that ended so is opened again; None where trying again makes no sense.

    A server that wants it says when; a connection that broke is not the server's word, and is opened again soon, and
    later each time that it breaks without an answer in between, which it did so many times before.
    """
    if (delay := _pushback(error)) is not None:
        return delay
    code = error.code()
    is_broken = code is grpc.StatusCode.UNAVAILABLE or (code in BREAKS and not is_from_server(error))
    return min(RESUME_DELAY * 2.0 ** min(breaks, 32), MAX_RESUME_DELAY) if is_broken else None


def _pushback(error: grpc.Call | grpc.aio.AioRpcError) -> float | None:
    """Seconds after which the server says that trying again makes sense; None where it does not say."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-retry-pushback-ms":
            with contextlib.suppress(ValueError):
                return max(0, int(value)) / 1000
    for detail in error_details(error):
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return None
