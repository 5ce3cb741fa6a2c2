"""EventService: the way in, and the one place to read an accepted event's whole story.

    bytes > parse > validate > filter > outbox.put (duplicates are found there) > Receipt

Requests arrive as bytes, so that what does not parse gets an answer of ours and not gRPC's.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from pointillist_destination.v1 import event_pb2, event_service_pb2
from service.clock import Clock
from service.errors import OutboxUnavailableError
from service.events.batch_frame import count_events, read_batch
from service.events.integrations import is_sent
from service.events.message_id import new_message_id
from service.events.validation import Violation, violations
from service.intake.byte_budget import ByteBudget, StreamBudget
from service.mapping.mapping import Mapping
from service.outbox.base import Entry, Sink
from service.outbox.deliveries import DeliveryWaiters
from service.server import status
from service.server.calls import END_OF_STREAM, Calls, Context, Stream, parse, stream, unary
from service.server.status import StatusError, cut
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import CALL

SERVICE_NAME = "pointillist_destination.v1.EventService"
BATCHES_AHEAD = 16  # batches of one stream that are read before the first of them is answered
# In one request. An answer stays below the 4 MiB that clients read by default: 1 MiB of rejections with their details,
# and 10,000 without, of 200 bytes each at most, are less than 3 MiB.
MAX_BATCH_EVENTS = 10_000
MAX_REJECTIONS = 1024 * 1024  # bytes of rejections in one answer, after which they come without details
MAX_MESSAGE_ID_BYTES = 400  # of a rejection's message_id: any that is allowed is whole, one that is too long is cut
MAX_SHORT_MESSAGE_ID = 100  # bytes, in a rejection without details
MAX_SHORT_MESSAGE = 80  # bytes, in a rejection without details
MAX_BATCH_BYTES = 64 * 1024 * 1024  # of requests that were read and answers that are not written yet, over all streams
MAX_UNWRITTEN = 1024 * 1024  # bytes of one stream's answers that wait to be written, after which it is read no further
MAX_FULL_PAUSE = 0.1  # seconds before a batch that found no room looks again
TRACK_KEY = b"\x12"  # field 2 of Event, length-delimited
IDENTIFY_KEY = b"\x0a"  # field 1 of Event, length-delimited

Message: TypeAlias = event_pb2.Track | event_pb2.Identify


class EventService:
    """The handlers of EventService."""

    def __init__(
        self,
        *,
        outbox: Sink,
        mapping: Callable[[], Mapping],
        deliveries: DeliveryWaiters,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        """Make the service.

        Args:
            outbox: where accepted events go.
            mapping: gives the mapping in force.
            deliveries: tells of deliveries to those who wait for them.
            metrics: what it counts in.
            clock: its time.
        """
        self._outbox = outbox
        self._mapping = mapping
        self._deliveries = deliveries
        self._metrics = metrics
        self._clock = clock
        self._draining = asyncio.Event()
        self._waiting_for_room = asyncio.Lock()
        self._reading: set[asyncio.Future[bytes]] = set()
        self._budget = ByteBudget(MAX_BATCH_BYTES)

    def drain(self) -> None:
        """Take nothing new: streams answer what they have read and end."""
        self._draining.set()
        for read in self._reading:
            read.cancel()

    # -- one event

    async def track(self, request: bytes, context: Context) -> bytes:
        """Take one track message."""
        parsed = parse(event_service_pb2.TrackRequest, request)
        message = parsed.track if parsed.HasField("track") else None
        receipt = await self._take("track", message, parsed.options, context)
        return event_service_pb2.TrackResponse(receipt=receipt).SerializeToString()

    async def identify(self, request: bytes, context: Context) -> bytes:
        """Take one identify message."""
        parsed = parse(event_service_pb2.IdentifyRequest, request)
        message = parsed.identify if parsed.HasField("identify") else None
        receipt = await self._take("identify", message, parsed.options, context)
        return event_service_pb2.IdentifyResponse(receipt=receipt).SerializeToString()

    async def _take(
        self, name: str, message: Message | None, options: event_service_pb2.SendOptions, context: Context
    ) -> event_service_pb2.Receipt:
        found = []
        if options.validate_only and options.wait_for_delivery:
            found.append(Violation("options.wait_for_delivery", "goes without validate_only, which keeps nothing"))
        if message is None:
            found.append(Violation(name, "is not set"))
            raise self._rejected(found)
        payload = serialise(message)
        found += violations(message, payload)
        if found:
            raise self._rejected(found)
        if not message.message_id and not options.validate_only:
            message.message_id = new_message_id()
            payload = serialise(message)
        receipt = event_service_pb2.Receipt(message_id=message.message_id)
        accepted_at = self._now()
        if options.include_record:
            receipt.record.CopyFrom(self._mapping().record(event_pb2.Event.FromString(payload), accepted_at))
        if not is_sent(message.integrations):
            self._metrics.events["filtered"].inc()
            receipt.outcome = event_service_pb2.OUTCOME_FILTERED
        elif options.validate_only:
            self._metrics.events["validated"].inc()
            receipt.outcome = event_service_pb2.OUTCOME_VALIDATED
        elif options.wait_for_delivery:
            receipt.outcome = await self._deliver(
                Entry(message.message_id, payload, accepted_at, CALL.get(), is_awaited=True), context
            )
        else:
            receipt.outcome = await self._accept(Entry(message.message_id, payload, accepted_at, CALL.get()))
        return receipt

    async def _accept(self, entry: Entry) -> event_service_pb2.Outcome.ValueType:
        if self._draining.is_set():
            raise status.shutting_down()
        [is_new] = await self._outbox.put([entry])
        self._metrics.events["accepted" if is_new else "duplicate"].inc()
        return event_service_pb2.OUTCOME_ACCEPTED if is_new else event_service_pb2.OUTCOME_DUPLICATE

    async def _deliver(self, entry: Entry, context: Context) -> event_service_pb2.Outcome.ValueType:
        """Accept an event and wait until it is settled for good."""
        with self._deliveries.expect(entry.message_id) as delivered:
            outcome = await self._accept(entry)
            if outcome == event_service_pb2.OUTCOME_DUPLICATE:
                return outcome
            draining = asyncio.ensure_future(self._draining.wait())
            try:
                either: set[asyncio.Future[Any]] = {delivered, draining}
                done, _ = await asyncio.wait(
                    either, timeout=context.time_remaining(), return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                draining.cancel()
            if not done:
                raise status.deadline_passed(entry.message_id)
            if not delivered.done():
                raise status.shutting_down(
                    "the server is shutting down; the event is on disk and will be delivered after its restart"
                )
            if (refusal := delivered.result()) is not None:
                raise status.refused_by_pointillist(entry.message_id, refusal)
            return event_service_pb2.OUTCOME_DELIVERED

    # -- a stream of batches

    async def batch_send(self, both: Stream) -> None:
        """Take batches. One task reads ahead; answers are written in the order of the requests."""
        answers: asyncio.Queue[_Answer | None] = asyncio.Queue(BATCHES_AHEAD)
        budget = StreamBudget(self._budget, MAX_UNWRITTEN)
        reader = asyncio.create_task(self._read(both, answers, budget))
        try:
            while (answer := await answers.get()) is not None:
                await both.write(await answer.ready)
                budget.written(answer.size)
            await reader
        finally:
            reader.cancel()
            while not answers.empty():
                if (unanswered := answers.get_nowait()) is not None:
                    unanswered.ready.cancel()
            budget.close()

    async def _read(self, both: Stream, answers: "asyncio.Queue[_Answer | None]", budget: StreamBudget) -> None:
        """Read until the caller ends, or the server does; while there is no room, read nothing."""
        try:
            while True:
                if self._outbox.full() is not None:
                    await self._unless_draining(self._outbox.has_room())
                if not budget.may_read():
                    await self._unless_draining(budget.until_may_read())
                request = await self._read_request(both)
                if request is END_OF_STREAM:
                    return
                if not budget.hold_now(len(request)):
                    await self._unless_draining(budget.hold(len(request)))
                await answers.put(self._take_batch(request, budget))
        finally:
            await answers.put(None)

    async def _read_request(self, both: Stream) -> bytes:
        """Read one request, unless the server ends."""
        if self._draining.is_set():
            raise status.shutting_down()
        read: asyncio.Future[bytes] = asyncio.ensure_future(both.read())
        self._reading.add(read)
        try:
            return await read
        except asyncio.CancelledError:
            if self._draining.is_set():
                raise status.shutting_down() from None
            raise
        finally:
            self._reading.discard(read)

    def _take_batch(self, request: bytes, budget: StreamBudget) -> "_Answer":
        """Judge each event of a batch by itself, and begin to store the good ones together.

        It is done in one go, so that no other batch is read before this one's answer is in the budget.
        """
        try:
            frame = read_batch(request)
        except DecodeError as error:
            raise status.unparsable("BatchSendRequest") from error
        if len(frame.events) > MAX_BATCH_EVENTS:
            too_many = f"has {len(frame.events)} events; {MAX_BATCH_EVENTS} are allowed in one request"
            raise status.invalid([Violation("events", too_many)])
        response = event_service_pb2.BatchSendResponse(sequence=frame.sequence)
        entries: list[Entry] = []
        accepted_at, traceparent = self._now(), CALL.get()
        size = 0
        for index, payload in enumerate(frame.events):
            try:
                entry = _entry(payload, accepted_at, traceparent)
            except _RejectedError as rejected:
                rejection = rejected.rejection(index, is_short=size >= MAX_REJECTIONS)
                size += rejection.ByteSize()
                response.rejections.append(rejection)
                continue
            if entry is None:
                response.filtered += 1
            else:
                entries.append(entry)
        budget.answer(size)
        ready = asyncio.ensure_future(self._answer(response, entries))
        ready.add_done_callback(lambda _: budget.let_go(len(request)))
        return _Answer(ready, size)

    async def _answer(self, response: event_service_pb2.BatchSendResponse, entries: Sequence[Entry]) -> bytes:
        """Store events, and complete the answer."""
        if entries:
            stored = await self._put(entries)
            response.accepted = sum(stored)
            response.duplicates = len(stored) - response.accepted
        self._metrics.count_events(
            accepted=response.accepted,
            duplicate=response.duplicates,
            filtered=response.filtered,
            rejected=len(response.rejections),
        )
        return response.SerializeToString()

    async def _put(self, entries: Sequence[Entry]) -> list[bool]:
        """Store events; a batch that was read waits for room, and does not fail for want of it.

        Those that wait get room in the order they came in: an answer that waits for room would else wait for those
        behind it, too, which need it just as much.
        """
        if not self._waiting_for_room.locked():
            with contextlib.suppress(OutboxUnavailableError):
                return await self._outbox.put(entries)
        async with self._waiting_for_room:
            while True:
                await self._unless_draining(self._outbox.has_room())
                try:
                    return await self._outbox.put(entries)
                except OutboxUnavailableError as error:
                    await self._unless_draining(asyncio.sleep(min(error.retry_after, MAX_FULL_PAUSE)))

    async def _unless_draining(self, awaitable: Awaitable[object]) -> None:
        """Await something.

        Raises:
            Fault: UNAVAILABLE, when the server begins to shut down first.
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

    def _rejected(self, found: list[Violation]) -> StatusError:
        self._metrics.events["rejected"].inc()
        return status.invalid(found)

    def _now(self) -> int:
        return round(self._clock.wall() * 1000)


class _Answer(NamedTuple):
    """The answer to one batch."""

    ready: asyncio.Future[bytes]
    """Its bytes, once its events are on disk."""

    size: int
    """How many bytes it has, but for a few."""


class _RejectedError(Exception):
    """An event of a batch is refused."""

    def __init__(self, message_id: str, status: status_pb2.Status) -> None:
        super().__init__(message_id)
        self.message_id = message_id
        self.status = status

    def rejection(self, index: int, *, is_short: bool) -> event_service_pb2.Rejection:
        """As an answer has it; a short one has neither details nor long texts."""
        if not is_short:
            message_id = cut(self.message_id, MAX_MESSAGE_ID_BYTES)
            return event_service_pb2.Rejection(index=index, message_id=message_id, status=self.status)
        message_id = cut(self.message_id, MAX_SHORT_MESSAGE_ID)
        status = status_pb2.Status(code=self.status.code, message=cut(self.status.message, MAX_SHORT_MESSAGE))
        return event_service_pb2.Rejection(index=index, message_id=message_id, status=status)


def _entry(payload: bytes, accepted_at: int, traceparent: str) -> Entry | None:
    """An event of a batch as it goes into the outbox; None where the integrations object keeps it from Pointillist.

    Raises:
        _RejectedError: with the status that a unary call would have ended with.
    """
    try:
        event = event_pb2.Event.FromString(payload)
    except DecodeError as error:
        raise _RejectedError("", status.unparsable("Event").status) from error
    message: Message
    if event.HasField("track"):
        message = event.track
    elif event.HasField("identify"):
        message = event.identify
    else:
        nothing = [Violation("type", "is not set; an event is either an identify or a track")]
        raise _RejectedError("", status.invalid(nothing).status)
    message_id = message.message_id
    if found := violations(message, payload):
        raise _RejectedError(message_id, status.invalid(found).status)
    if not is_sent(message.integrations):
        return None
    if not message_id:
        message_id = message.message_id = new_message_id()
        payload = event.SerializeToString()
    return Entry(message_id, payload, accepted_at, traceparent)


def serialise(message: Message) -> bytes:
    """The bytes of the Event that holds a message, without a copy of the message into one."""
    body = message.SerializeToString()
    length = len(body)
    key = TRACK_KEY if isinstance(message, event_pb2.Track) else IDENTIFY_KEY
    while length > 0x7F:
        key += bytes((length & 0x7F | 0x80,))
        length >>= 7
    return key + bytes((length,)) + body


def handlers(service: EventService, calls: Calls) -> grpc.GenericRpcHandler:
    """The service's methods as gRPC knows them."""
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            "Track": grpc.unary_unary_rpc_method_handler(unary(calls, SERVICE_NAME, "Track", service.track)),
            "Identify": grpc.unary_unary_rpc_method_handler(unary(calls, SERVICE_NAME, "Identify", service.identify)),
            "BatchSend": grpc.stream_stream_rpc_method_handler(
                stream(calls, SERVICE_NAME, "BatchSend", service.batch_send, count_events)
            ),
        },
    )
