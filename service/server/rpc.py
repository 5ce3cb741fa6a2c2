"""Wraps every RPC handler: admission, metrics, tracing, error mapping, access log.

    count > trace > admission > authentication > authorization > handler > status and details > count > access log

A StatusError becomes a status with its details, and any unexpected error INTERNAL. It is a wrapper around each handler
and not a grpc.aio interceptor, which would cost several times as much per call and see less of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from service.errors import OutboxUnavailableError
from service.server.auth import Admission, authorized, subject
from service.server.calls import Calls, Method
from service.server.request_reading import Context
from service.server.status import StatusError, outbox_unavailable, over_rate, unexpected, unparsable
from service.server.stream import Stream
from service.telemetry.grpc_metrics import CODES
from service.telemetry.tracing import CALL, CallSpan

Request = TypeVar("Request", bound=Message)

# Seconds. gRPC cancels a call whose deadline passes; that its caller cancelled it just before, nobody can tell.
DEADLINE_MARGIN = 0.05
# Seconds. Where a caller cancels a stream, its handler may read the end of the stream before it is cancelled.
CANCEL_MARGIN = 0.002

MAX_REFUSED = 10  # fields in the line of a stream

NOBODY = Admission(None, None)  # the caller, without authentication

log = structlog.get_logger()


class _Call:
    """One call, from its start to its end."""

    __slots__ = (
        "_code",
        "_context",
        "_fields",
        "_has_entered",
        "_method",
        "_peer",
        "_span",
        "_started_at",
        "admission",
    )

    def __init__(self, method: Method, context: Context) -> None:
        method.meter.started.inc()
        self._method = method
        self._context = context
        self._peer = context.peer()  # gRPC forgets it with the end of the call
        self._code = "OK"
        self._fields: Sequence[str] = ()
        self._has_entered = False
        self._started_at = time.perf_counter()
        self._span: CallSpan | None = None
        self.admission = NOBODY
        if method.calls.tracing is not None:
            self._span = method.calls.tracing.call(method.path, context.invocation_metadata())
            CALL.set(self._span.traceparent)

    def admit(self) -> None:
        """Authenticate and authorize the caller, and count its calls at a time.

        Raises:
            StatusError: UNAUTHENTICATED, PERMISSION_DENIED or UNAVAILABLE.
        """
        calls = self._method.calls
        if calls.authenticator is not None:
            self.admission = calls.authenticator.identify(self._context.invocation_metadata())
            authorized(self.admission, self._method.path)
        elif calls.by_certificate:
            self.admission = Admission(subject(self._context.auth_context()), None)
        if (name := self.admission.caller) is not None:
            calls.enter(name, self.admission.max_calls)
            self._has_entered = True

    def take_one(self) -> None:
        """Count it against its caller's rate.

        Raises:
            StatusError: RESOURCE_EXHAUSTED.
        """
        bucket = self.admission.bucket
        if bucket is not None and (retry_after := bucket.take()) > 0:
            raise over_rate(self.admission.caller or "", bucket.per_second, retry_after)

    async def fail(self, error: BaseException) -> None:
        """Answer with an error; always raises."""
        context = self._context
        if isinstance(error, OutboxUnavailableError):
            error = outbox_unavailable(error)
        if isinstance(error, StatusError):
            self._code = CODES[error.status.code]
            if error.fields:
                self._fields = error.fields
                self._method.calls.metrics.count_refused(dict.fromkeys(error.fields, 1))
            await abort(context, error)
        if not isinstance(error, Exception) or context.done():
            remaining = context.time_remaining()
            self._code = "CANCELLED" if remaining is None or remaining > DEADLINE_MARGIN else "DEADLINE_EXCEEDED"
            raise error
        self._code = "INTERNAL"
        if not isinstance(error, grpc.aio.AbortError):
            log.error("unexpected error in a call", exc_info=error)
            await abort(context, unexpected())
        raise error

    def end(self, **more: object) -> None:
        """Count and log it."""
        method = self._method
        if self._has_entered:
            method.calls.leave(self.admission.caller or "")
        seconds = time.perf_counter() - self._started_at
        method.meter.handled(self._code, seconds)
        if self._span is not None:
            self._span.end(self._code)
        if (access_log := method.calls.access_log) is not None:
            if self._fields:
                more["fields"] = self._fields
            access_log.note(method.path, self._code, seconds, self._peer, self.admission.caller, **more)


def unary(
    calls: Calls,
    service: str,
    name: str,
    handler: Callable[[bytes, Context], Awaitable[bytes]],
    *,
    largest_answer: int = 0,
) -> Callable[[object, Context], Awaitable[bytes]]:
    """Wrap a handler of one request with one answer; gRPC is told that it reads a stream.

    gRPC would otherwise read the whole request before anything of ours is asked, whoever sends it.

    Args:
        calls: all calls of the server.
        service: the full name of its service.
        name: its own name there.
        handler: answers.
        largest_answer: bytes that are reserved before it is made; where it is 0, answers are small, or made at once.
    """
    method = calls.method("unary", service, name)
    meter = method.meter
    type_name = f"{name}Request"

    async def handle(_: object, context: Context) -> bytes:
        call = _Call(method, context)
        try:
            with calls:
                call.admit()
                request = await calls.reading.read(context, call.admission.caller, type_name)
                meter.received.inc()
                call.take_one()
                if largest_answer:
                    with calls.reserved(call.admission.caller or "", largest_answer):
                        answer = await handler(request, context)
                else:
                    answer = await handler(request, context)
                calls.until_sent(context, call.admission.caller, answer)
        except BaseException as error:  # the caller gets an answer whatever happens
            await call.fail(error)
            raise
        else:
            meter.sent.inc()
            return answer
        finally:
            call.end()

    return handle


def stream(
    calls: Calls,
    service: str,
    name: str,
    handler: Callable[[Stream], Awaitable[None]],
    count_events: Callable[[bytes], int],
) -> Callable[[object, Context], Awaitable[None]]:
    """Wrap a handler that reads and writes as it likes.

    Args:
        calls: all calls of the server.
        service: the full name of its service.
        name: its own name there.
        handler: reads, and answers.
        count_events: returns the number of events in a message.
    """
    method = calls.method("bidi_stream", service, name)

    async def handle(_: object, context: Context) -> None:
        call = _Call(method, context)
        more: dict[str, object] = {"messages": 0}
        try:
            with calls.place() as place:
                call.admit()
                both = Stream(context, method.meter, call.admission, count_events, leave=place.leave)
                try:
                    with calls.rechecked(both, method.path):
                        await handler(both)
                    await asyncio.sleep(CANCEL_MARGIN)
                finally:
                    more["messages"] = both.received
                    if both.refused:
                        more["refused"] = dict(both.refused.most_common(MAX_REFUSED))
        except BaseException as error:  # the caller gets an answer whatever happens
            await call.fail(error)
            raise
        finally:
            call.end(**more)

    return handle


class UnknownMethods(grpc.GenericRpcHandler):
    """Counts and logs calls of methods that there are not. gRPC asks it last, and answers them with UNIMPLEMENTED.

    Args:
        calls: count and log them.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
        """Know no handler."""
        self._calls.note_unknown(handler_call_details.method)


def parse(message_class: type[Request], request: bytes) -> Request:
    """Parse a request.

    Raises:
        StatusError: INVALID_ARGUMENT, where gRPC itself would answer INTERNAL or UNKNOWN.
    """
    try:
        return message_class.FromString(request)
    except DecodeError as error:
        raise unparsable(message_class.DESCRIPTOR.name) from error


async def abort(context: Context, fault: StatusError) -> None:
    """End a call with a fault: status, rich details, and the pushback that gRPC's own retries obey."""
    trailing = [("grpc-status-details-bin", fault.status.SerializeToString())]
    if fault.retry_after is not None:
        trailing.append(("grpc-retry-pushback-ms", str(fault.retry_after_ms)))
    await context.abort(
        grpc.StatusCode[CODES[fault.status.code]], fault.status.message, trailing_metadata=tuple(trailing)
    )
