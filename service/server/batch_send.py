"""BatchSend: streams of batches, each judged event by event and stored in one put.

A stream is read ahead of its answers, within bounds; answers are written in the order of the requests. While the outbox
stores nothing, streams are not read: their callers feel it as backpressure.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from pointillist_destination.v1 import event_service_pb2
from service.errors import EventRejectedError, OutboxUnavailableError
from service.events.batch_frame import BatchFrame, read_batch
from service.events.validation import Violation
from service.intake.acceptance import Acceptance, entry_of
from service.intake.byte_budget import ByteBudget, OwnerBudget, StreamBudget
from service.intake.judging import SMALL_BATCH, Judging, Slice
from service.intake.waiting_line import WaitingLine
from service.outbox.base import Entry
from service.server import status
from service.server.request_reading import END_OF_STREAM
from service.server.standing_writes import UNREAD_AFTER, StandingWrites
from service.server.status import cut
from service.server.stream import Stream
from service.telemetry.tracing import CALL

BATCHES_AHEAD = 16  # batches of one stream that are read before the first of them is answered
# In one request. An answer stays below the 4 MiB that clients read by default: 1 MiB of rejections with their details,
# and 10,000 without, of 200 bytes each at most, are less than 3 MiB.
MAX_BATCH_EVENTS = 10_000
MAX_REJECTIONS = 1024 * 1024  # bytes of rejections in one answer, after which they come without details
MAX_MESSAGE_ID_BYTES = 400  # of a rejection's message_id: a valid one is whole, one that is too long is cut
MAX_SHORT_MESSAGE_ID = 100  # bytes, in a rejection without details
MAX_SHORT_MESSAGE = 80  # bytes, in a rejection without details
MAX_BATCH_BYTES = 64 * 1024 * 1024  # of requests that were read and answers that are not written yet, over all streams
MAX_UNWRITTEN = 1024 * 1024  # bytes of one stream's answers that wait to be written, after which it is read no further
# Of one caller over all its streams, so that it leaves enough to the others.
MAX_OWNER_REQUESTS = 32 * 1024 * 1024  # bytes of requests
MAX_OWNER_UNWRITTEN = 16 * 1024 * 1024  # bytes of answers that wait to be written
MAX_FULL_PAUSE = 0.1  # seconds before a batch that the outbox refused is put again


class BatchSend:
    """All streams of one server.

    Args:
        acceptance: stores the events.
        draining: set once the server shuts down.
    """

    def __init__(self, acceptance: Acceptance, draining: asyncio.Event) -> None:
        self._acceptance = acceptance
        self._draining = draining
        self._line = WaitingLine()
        self._judging = Judging()
        self._open: set[Stream] = set()
        self._owners: dict[Hashable, OwnerBudget] = {}
        self.budget = ByteBudget(MAX_BATCH_BYTES)
        """The requests and answers in memory, of all streams."""
        self.writes = StandingWrites(UNREAD_AFTER)
        """The answers that are being written."""

    def drain(self) -> None:
        """Read no further batch."""
        for stream in self._open:
            stream.end(status.shutting_down())

    async def run(self, both: Stream) -> None:
        """Serve one stream: one task reads ahead, this one writes."""
        answers: asyncio.Queue[_Answer | None] = asyncio.Queue(BATCHES_AHEAD)
        if self._draining.is_set():
            raise status.shutting_down()
        await both.begin()
        with self._opened(both), self._budget_of(both) as budget:
            reader = asyncio.create_task(self._read(both, answers, budget))

            def drop() -> None:
                """Read and answer nothing more, and leave what others share to them."""
                reader.cancel()
                _drop(answers)
                budget.leave_shared()
                both.leave()

            try:
                while (answer := await answers.get()) is not None:
                    message = await answer.ready
                    if not await self.writes.write(both, both.caller, both.write(message), drop):
                        raise status.unread(self.writes.unread_after)
                    budget.written(answer.size)
                await reader
            finally:
                reader.cancel()
                _drop(answers)

    @contextlib.contextmanager
    def _opened(self, both: Stream) -> Iterator[None]:
        """Have a stream end within the body when the server does."""
        self._open.add(both)
        try:
            yield
        finally:
            self._open.discard(both)

    @contextlib.contextmanager
    def _budget_of(self, both: Stream) -> Iterator[StreamBudget]:
        """Have a stream's part of the budget within the body."""
        # Streams without a caller's name have no bound in common: behind a proxy all would share it.
        key = both.caller or both
        owner = self._owners.setdefault(key, OwnerBudget(MAX_OWNER_REQUESTS, MAX_OWNER_UNWRITTEN))
        owner.streams += 1
        budget = StreamBudget(self.budget, MAX_UNWRITTEN, owner)
        try:
            yield budget
        finally:
            budget.close()
            owner.streams -= 1
            if not owner.streams:
                del self._owners[key]

    async def _read(self, both: Stream, answers: "asyncio.Queue[_Answer | None]", budget: StreamBudget) -> None:
        """Read until the caller ends, or the server does; while the outbox stores nothing, read nothing."""
        sink = self._acceptance.sink
        try:
            while True:
                if sink.full() is not None:
                    await both.unless_over(sink.has_room())
                if not budget.may_go_on():
                    await both.unless_over(budget.until_may_go_on())
                request = await both.read()
                if request is END_OF_STREAM:
                    return
                if not budget.hold_now(len(request)):
                    await self._unless_draining(budget.hold(len(request)))
                answer = await self._receive(request, both, budget)
                del request  # while the next one is awaited, it would fill memory
                await answers.put(answer)
        finally:
            await answers.put(None)

    async def _receive(self, request: bytes, both: Stream, budget: StreamBudget) -> "_Answer":
        """Judge each event of a batch by itself, and begin to store the valid ones together.

        A small batch is judged at once; a larger one takes its turn, and is judged in slices of time.
        """
        try:
            frame = read_batch(request)
        except DecodeError as error:
            raise status.unparsable("BatchSendRequest") from error
        if len(frame.events) > MAX_BATCH_EVENTS:
            too_many = f"has {len(frame.events)} events; {MAX_BATCH_EVENTS} are allowed in one request"
            raise status.invalid_request([Violation("events", too_many)])
        verdicts = _Verdicts(frame, self._acceptance.now(), CALL.get())
        while True:
            if not budget.may_go_on():
                await self._unless_draining(budget.until_may_go_on())
            if len(frame.events) <= SMALL_BATCH:
                verdicts.judge(None)
                break
            async with self._judging.turn(both.caller, id(both)) as part:
                if not budget.may_go_on():  # others of the same caller were judged meanwhile
                    continue
                while not (self._draining.is_set() or verdicts.judge(part)):
                    await part.next()
                if self._draining.is_set():
                    raise status.shutting_down()
                break
        self._count_refused(verdicts.refused, both)
        size = verdicts.size
        budget.answer(size)
        request_size = len(request)
        in_bulk = len(frame.events) > SMALL_BATCH or both.bulk_puts > 0  # none overtakes an earlier one of its stream
        both.bulk_puts += in_bulk

        def done(_: object) -> None:
            budget.let_go(request_size)
            both.bulk_puts -= in_bulk

        ready = asyncio.ensure_future(self._answer(verdicts.response, verdicts.entries, in_bulk=in_bulk))
        ready.add_done_callback(done)
        return _Answer(ready, size)

    def _count_refused(self, refused: Counter[str], both: Stream) -> None:
        if refused:
            self._acceptance.count_refused(refused)
            both.refused.update(refused)

    async def _answer(
        self, response: event_service_pb2.BatchSendResponse, entries: Sequence[Entry], *, in_bulk: bool
    ) -> bytes:
        """Store events, and complete the answer."""
        if entries:
            stored = await self._put(entries, in_bulk=in_bulk)
            response.accepted = sum(stored)
            response.duplicates = len(stored) - response.accepted
        self._acceptance.count_batch(
            accepted=response.accepted,
            duplicate=response.duplicates,
            filtered=response.filtered,
            rejected=len(response.rejections),
        )
        return response.SerializeToString()

    async def _put(self, entries: Sequence[Entry], *, in_bulk: bool) -> list[bool]:
        """Store events; a batch that was read waits for the outbox instead of failing.

        Batches are put in the order they came in, also after a refusal: the order of a stream's events is kept, and an
        answer would otherwise wait for those behind it, which need the capacity just as much. A place is left before
        the put is awaited, so that the next batch shares its commit.
        """
        sink, line = self._acceptance.sink, self._line
        number = line.arrive()
        if line.is_empty():
            with contextlib.suppress(OutboxUnavailableError):
                return await sink.put(entries, in_bulk=in_bulk)
        pause = 0.0
        while True:
            with line.place(number):
                await self._unless_draining(self._may_put(number, pause))
            try:
                return await sink.put(entries, in_bulk=in_bulk)
            except OutboxUnavailableError as error:
                pause = min(error.retry_after, MAX_FULL_PAUSE)

    async def _may_put(self, number: int, pause: float) -> None:
        """Return once a waiting batch is the first, and the outbox has capacity, but not before a pause in seconds."""
        await asyncio.sleep(pause)
        while True:
            await self._line.first(number)
            await self._acceptance.sink.has_room()
            if self._line.is_first(number):  # one that was refused meanwhile may be back in its place
                return

    async def _unless_draining(self, awaitable: Awaitable[object]) -> None:
        """Await something.

        Raises:
            StatusError: UNAVAILABLE, when the server begins to shut down first.
        """
        task: asyncio.Future[Any] = asyncio.ensure_future(awaitable)
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise status.shutting_down()
            await task
        finally:
            draining.cancel()
            task.cancel()


def _drop(answers: "asyncio.Queue[_Answer | None]") -> None:
    """Write none of these answers."""
    while not answers.empty():
        if (unanswered := answers.get_nowait()) is not None:
            unanswered.ready.cancel()


class _Verdicts:
    """The verdicts on the events of one batch.

    Args:
        frame: the batch.
        accepted_at: milliseconds since the epoch.
        traceparent: of the accepting call's span; "" without one.
    """

    def __init__(self, frame: BatchFrame, accepted_at: int, traceparent: str) -> None:
        self.response = event_service_pb2.BatchSendResponse(sequence=frame.sequence)
        self.entries: list[Entry] = []
        """Of the valid events that are sent."""
        self.size = 0
        """Bytes of the rejections."""
        self.refused: Counter[str] = Counter()
        """Rejections by field of the contract."""
        self._events = enumerate(frame.events)
        self._accepted_at = accepted_at
        self._traceparent = traceparent

    def judge(self, part: Slice | None) -> bool:
        """Judge the next events, until the slice of time is over; returns True once all are judged."""
        response = self.response
        for index, payload in self._events:
            try:
                entry = entry_of(payload, self._accepted_at, self._traceparent)
            except EventRejectedError as error:
                fault = status.rejected(error)
                self.refused.update(fault.fields)
                rejection = _rejection(fault, error.message_id, index, is_short=self.size >= MAX_REJECTIONS)
                self.size += rejection.ByteSize()
                response.rejections.append(rejection)
            else:
                if entry is None:
                    response.filtered += 1
                else:
                    self.entries.append(entry)
            if part is not None and part.is_over():
                return False
        return True


class _Answer(NamedTuple):
    """The answer to one batch."""

    ready: asyncio.Future[bytes]
    """Its bytes, once its events are on disk."""

    size: int
    """About how many bytes it has."""


def _rejection(
    fault: status.StatusError, message_id: str, index: int, *, is_short: bool
) -> event_service_pb2.Rejection:
    """Return a rejection with the status that a unary call would end with; a short one without details."""
    full = fault.status
    if not is_short:
        message_id = cut(message_id, MAX_MESSAGE_ID_BYTES)
        return event_service_pb2.Rejection(index=index, message_id=message_id, status=full)
    message_id = cut(message_id, MAX_SHORT_MESSAGE_ID)
    short = status_pb2.Status(code=full.code, message=cut(full.message, MAX_SHORT_MESSAGE))
    return event_service_pb2.Rejection(index=index, message_id=message_id, status=short)
