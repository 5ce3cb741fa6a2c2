"""Wraps every RPC handler: admission, metrics, tracing, error mapping, access log.

    count > trace > admission > authentication > authorization > handler > status and details > count > access log

A StatusError becomes a status with its details, and any unexpected error INTERNAL. It is a wrapper around each handler
and not a grpc.aio interceptor, which would cost several times as much per call and see less of it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Self, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from service.errors import OutboxUnavailableError
from service.intake.answer_budget import AnswerBudget
from service.server.auth import Admission, Authenticator, subject
from service.server.request_reading import Context, RequestReading
from service.server.status import (
    StatusError,
    outbox_unavailable,
    over_rate,
    too_many_calls,
    too_many_calls_of,
    unexpected,
    unparsable,
    unread_answers,
)
from service.server.stream import Stream
from service.telemetry.access_log import AccessLog
from service.telemetry.grpc_metrics import CODES, GrpcMetrics, MethodMeter, MethodType
from service.telemetry.tracing import CALL, CallSpan, Tracing

Request = TypeVar("Request", bound=Message)

# Requests of up to 4 MiB that are being read at a time: 64 MiB, and half of them at most for one caller.
READING_PLACES = 16
OPERATORS_READING_PLACES = 4
# Bytes of unary answers that have not left, as their callers do not read them. Small ones are not worth the counting:
# their number is bounded, as each is a call.
MAX_UNSENT = 64 * 1024 * 1024
MAX_UNSENT_OF_CALLER = 16 * 1024 * 1024
SMALL_ANSWER = 4096
# At least: an answer leaves a little later than its caller has read it, and may make the next call.
UNSENT_CALLS = 100
NOBODY = Admission(None, None)  # the caller, without authentication

log = structlog.get_logger()


class Calls:
    """The calls in progress, so that a server that stops can wait for their end."""

    def __init__(
        self,
        *,
        most: int,
        reading_places: int = READING_PLACES,
        authenticator: Authenticator | None = None,
        by_certificate: bool = False,
        metrics: GrpcMetrics | None = None,
        access_log: AccessLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Create it.

        Args:
            most: maximum number of calls in progress, over all connections.
            reading_places: maximum number of requests that are being read.
            authenticator: admits callers; without it, everybody is admitted.
            by_certificate: without an authenticator, callers are told apart by their certificates.
            metrics: counts calls.
            access_log: logs calls.
            tracing: records a span per call.
        """
        self._most = most
        self.reading = RequestReading(reading_places, max(1, reading_places // 2))
        """The requests that are being read."""
        self._answers = AnswerBudget(MAX_UNSENT, MAX_UNSENT_OF_CALLER)
        self.authenticator = authenticator
        self.by_certificate = by_certificate
        self.access_log = access_log
        self.tracing = tracing
        self._metrics = metrics or GrpcMetrics()
        self._active = 0
        self._active_of: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    def with_own_bound(self) -> "Calls":
        """Return one with the same parts and a bound of its own, for calls that others must not shut out."""
        return Calls(
            most=self._most,
            reading_places=OPERATORS_READING_PLACES,
            authenticator=self.authenticator,
            by_certificate=self.by_certificate,
            metrics=self._metrics,
            access_log=self.access_log,
            tracing=self.tracing,
        )

    def method(self, method_type: MethodType, service: str, name: str) -> "_Method":
        """Return the wrapper of a method that will be served."""
        return _Method(self, f"/{service}/{name}", self._metrics.meter(method_type, service, name))

    def __enter__(self) -> None:
        if self._active >= self._most or self._answers.number >= max(self._most, UNSENT_CALLS):
            raise too_many_calls()
        self._active += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._active -= 1
        if not self._active:
            self._idle.set()

    @property
    def usage(self) -> float:
        """The share of the calls at a time that are in progress."""
        return self._active / self._most

    def place(self) -> "Place":
        """Return the place of a stream among the calls in progress, which it may leave before it ends."""
        return Place(self)

    def enter(self, caller: str, most: int | None) -> None:
        """Count a call of a caller; it has to `leave`.

        Raises:
            StatusError: UNAVAILABLE, where the caller has as many calls as it may have: `most`, by default half of all.
        """
        most = most or max(1, self._most // 2)
        if self._active_of[caller] >= most or self._answers.number_of[caller] >= max(most, UNSENT_CALLS):
            raise too_many_calls_of(caller, most)
        self._active_of[caller] += 1

    def leave(self, caller: str) -> None:
        """Count a call of a caller no more."""
        self._active_of[caller] -= 1
        if not self._active_of[caller]:
            del self._active_of[caller]

    @contextlib.contextmanager
    def reserved(self, caller: str, size: int) -> Iterator[None]:
        """Have room for an answer of up to `size` bytes within the body, in which it is made.

        Raises:
            StatusError: UNAVAILABLE, where too many are not read.
        """
        if not self._answers.take(caller, size):
            raise unread_answers()
        try:
            yield
        finally:
            self._answers.give_back(caller, size)

    def until_sent(self, context: Context, caller: str | None, answer: bytes) -> None:
        """Count a unary call on until its answer has left: a caller that does not read it keeps it in memory.

        Raises:
            StatusError: UNAVAILABLE, where too many are not read.
        """
        owner = caller or ""
        size = len(answer) if len(answer) > SMALL_ANSWER else 0
        if not self._answers.take(owner, size):
            raise unread_answers()
        context.add_done_callback(lambda _: self._answers.give_back(owner, size))  # type: ignore[arg-type]

    async def ended(self, most: float) -> None:
        """Return once there are none, or after `most` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), most)


class Place:
    """The place of one stream among the calls in progress."""

    def __init__(self, calls: Calls) -> None:
        self._calls: Calls | None = calls

    def __enter__(self) -> Self:
        if self._calls is not None:
            self._calls.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Count no more in what others share, and in what a stop of the server waits for."""
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.__exit__()


class _Method:
    """One method as it is served."""

    __slots__ = ("calls", "meter", "path")

    def __init__(self, calls: Calls, path: str, meter: MethodMeter) -> None:
        self.calls = calls
        self.path = path
        self.meter = meter


class _Call:
    """One call, from its start to its end."""

    __slots__ = ("_code", "_context", "_has_entered", "_method", "_span", "_started_at", "admission")

    def __init__(self, method: _Method, context: Context) -> None:
        method.meter.started.inc()
        self._method = method
        self._context = context
        self._code = "OK"
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
            self.admission = calls.authenticator.admit(self._context.invocation_metadata(), self._method.path)
        elif calls.by_certificate:
            self.admission = Admission(subject(self._context.auth_context()), None)
        if (caller := self.admission.caller) is not None:
            calls.enter(caller, self.admission.max_calls)
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
            await abort(context, error)
        if not isinstance(error, Exception) or context.done():
            remaining = context.time_remaining()
            self._code = "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"
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
            access_log.note(method.path, self._code, seconds, self._context.peer, self.admission.caller, **more)


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
        messages = 0
        try:
            with calls.place() as place:
                call.admit()
                both = Stream(context, method.meter, call.admission, count_events, leave=place.leave)
                try:
                    await handler(both)
                finally:
                    messages = both.received
        except BaseException as error:  # the caller gets an answer whatever happens
            await call.fail(error)
            raise
        finally:
            call.end(messages=messages)

    return handle


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
