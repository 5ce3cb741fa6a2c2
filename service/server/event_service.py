"""EventService, the way in by gRPC: Track and Identify here, BatchSend in batch_send.py.

    bytes > parse > validate > filter > outbox put (which finds duplicates) > Receipt

Requests arrive as bytes, so that one that does not parse gets an answer of ours and not gRPC's.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from pointillist_destination.v1 import event_pb2, event_service_pb2
from service.clock import Clock
from service.errors import EventRejectedError
from service.events.batch_frame import count_events
from service.events.integrations import is_sent
from service.events.message import Message
from service.events.message_id import new_message_id
from service.events.validation import Violation
from service.intake.acceptance import Acceptance, check, serialise
from service.mapping.mapping import Mapping
from service.outbox.base import Entry, Sink
from service.outbox.deliveries import DeliveryWaiters
from service.server import status
from service.server.batch_send import BatchSend
from service.server.calls import Calls
from service.server.request_reading import Context
from service.server.rpc import parse, stream, unary
from service.server.stream import Stream
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import CALL

MAX_WAIT = 300.0  # seconds that a call may wait for a delivery
MAX_WAITING_ON_CONNECTION = 50  # calls, so that one channel's do not fill the share of all
SERVICE_NAME = "pointillist_destination.v1.EventService"


class EventService:
    """The handlers of EventService.

    Args:
        outbox: stores accepted events.
        mapping: returns the mapping in force.
        deliveries: notifies callers that wait for a delivery.
        metrics: counts the outcomes.
        clock: gives the time of acceptance.
        most_waiting: maximum number of calls that wait for a delivery.
    """

    def __init__(
        self,
        *,
        outbox: Sink,
        mapping: Callable[[], Mapping],
        deliveries: DeliveryWaiters,
        metrics: Metrics,
        clock: Clock,
        most_waiting: int,
    ) -> None:
        self._acceptance = Acceptance(outbox, metrics, clock)
        self._mapping = mapping
        self._deliveries = deliveries
        self._most_waiting = most_waiting
        self._waiting = 0
        self._waiting_on: Counter[str] = Counter()
        self._draining = asyncio.Event()
        self._batches = batches = BatchSend(self._acceptance, self._draining)
        metrics.batch_bytes.set_function(lambda: batches.budget.used)
        metrics.batch_streams_waiting.set_function(lambda: batches.budget.waiting)
        metrics.unread_streams.set_function(lambda: batches.writes.unread)

    def drain(self) -> None:
        """Accept nothing new: streams answer the batches that they have read, and end."""
        self._draining.set()
        self._batches.drain()

    async def track(self, request: bytes, context: Context) -> bytes:
        """Accept one track message."""
        parsed = parse(event_service_pb2.TrackRequest, request)
        message = parsed.track if parsed.HasField("track") else None
        receipt = await self._receive("track", message, parsed.options, context)
        return event_service_pb2.TrackResponse(receipt=receipt).SerializeToString()

    async def identify(self, request: bytes, context: Context) -> bytes:
        """Accept one identify message."""
        parsed = parse(event_service_pb2.IdentifyRequest, request)
        message = parsed.identify if parsed.HasField("identify") else None
        receipt = await self._receive("identify", message, parsed.options, context)
        return event_service_pb2.IdentifyResponse(receipt=receipt).SerializeToString()

    async def batch_send(self, both: Stream) -> None:
        """Accept a stream of batches."""
        await self._batches.run(both)

    async def _receive(
        self, name: str, message: Message | None, options: event_service_pb2.SendOptions, context: Context
    ) -> event_service_pb2.Receipt:
        acceptance = self._acceptance
        try:
            message, payload = _checked(name, message, options)
        except EventRejectedError as error:
            acceptance.count("rejected")
            raise status.rejected(error) from None
        if not message.message_id and not options.validate_only:
            message.message_id = new_message_id()
            payload = serialise(message)
        receipt = event_service_pb2.Receipt(message_id=message.message_id)
        accepted_at = acceptance.now()
        if options.include_record:
            receipt.record.CopyFrom(self._mapping().record(event_pb2.Event.FromString(payload), accepted_at))
        if not is_sent(message.integrations):
            acceptance.count("filtered")
            receipt.outcome = event_service_pb2.OUTCOME_FILTERED
        elif options.validate_only:
            acceptance.count("validated")
            receipt.outcome = event_service_pb2.OUTCOME_VALIDATED
        elif options.wait_for_delivery:
            entry = Entry(message.message_id, payload, accepted_at, CALL.get(), is_awaited=True)
            with self._place_to_wait(context.peer()):
                receipt.outcome = await self._deliver(entry, context)
        else:
            receipt.outcome = await self._accept(Entry(message.message_id, payload, accepted_at, CALL.get()))
        return receipt

    async def _accept(self, entry: Entry) -> event_service_pb2.Outcome.ValueType:
        if self._draining.is_set():
            raise status.shutting_down()
        is_new = await self._acceptance.put(entry)
        return event_service_pb2.OUTCOME_ACCEPTED if is_new else event_service_pb2.OUTCOME_DUPLICATE

    @contextmanager
    def _place_to_wait(self, connection: str) -> Iterator[None]:
        """Count a call that waits for a delivery, in all and on its connection.

        Raises:
            StatusError: UNAVAILABLE; nothing is stored.
        """
        if self._waiting >= self._most_waiting or self._waiting_on[connection] >= MAX_WAITING_ON_CONNECTION:
            raise status.too_many_waiting()
        self._waiting += 1
        self._waiting_on[connection] += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._waiting_on[connection] -= 1
            if not self._waiting_on[connection]:
                del self._waiting_on[connection]

    async def _deliver(self, entry: Entry, context: Context) -> event_service_pb2.Outcome.ValueType:
        """Accept an event and wait until it is settled for good; a repeat waits for the event that waits already."""
        with self._deliveries.expect(entry.message_id) as delivered:
            if self._draining.is_set():
                raise status.shutting_down()
            attachment = await self._acceptance.attach(entry)
            if attachment.refusal is not None:
                raise status.refused_by_pointillist(entry.message_id, attachment.refusal)
            if not attachment.is_pending and not delivered.done():
                return event_service_pb2.OUTCOME_DUPLICATE
            draining = asyncio.ensure_future(self._draining.wait())
            try:
                either: set[asyncio.Future[Any]] = {delivered, draining}
                remaining = context.time_remaining()
                longest = MAX_WAIT if remaining is None else min(remaining, MAX_WAIT)
                done, _ = await asyncio.wait(either, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
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


def _checked(name: str, message: Message | None, options: event_service_pb2.SendOptions) -> tuple[Message, bytes]:
    """Validate a request; returns its message and the serialised Event.

    Raises:
        EventRejectedError: it breaks a rule.
    """
    found = []
    if options.validate_only and options.wait_for_delivery:
        found.append(Violation("options.wait_for_delivery", "goes without validate_only, which keeps nothing"))
    if message is None:
        raise EventRejectedError("", [*found, Violation(name, "is not set")])
    payload = serialise(message)
    check(message, payload, found)
    return message, payload


def handlers(service: EventService, calls: Calls) -> grpc.GenericRpcHandler:
    """Return the service's methods, as gRPC registers them."""
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            "Track": grpc.stream_unary_rpc_method_handler(unary(calls, SERVICE_NAME, "Track", service.track)),
            "Identify": grpc.stream_unary_rpc_method_handler(unary(calls, SERVICE_NAME, "Identify", service.identify)),
            "BatchSend": grpc.stream_stream_rpc_method_handler(
                stream(calls, SERVICE_NAME, "BatchSend", service.batch_send, count_events)
            ),
        },
    )
