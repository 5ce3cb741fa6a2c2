"""Between our handlers and gRPC: a Fault becomes a status with its details, and anything unforeseen INTERNAL."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from service.faults import Fault, too_many_calls, unforeseen, unparsable

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Request = TypeVar("Request", bound=Message)
CODES = {code.value[0]: code for code in grpc.StatusCode}

CALLS_MOST = 10_000  # that are answered at a time, over all connections

log = structlog.get_logger()


class Calls:
    """The calls that are being answered, so that a server that stops can wait for their end and for nothing else."""

    def __init__(self) -> None:
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        if self._active >= CALLS_MOST:
            raise too_many_calls()
        self._active += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._active -= 1
        if not self._active:
            self._idle.set()

    async def ended(self, most: float) -> None:
        """Return once there are none, or after `most` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), most)


def unary(
    calls: Calls,
    handler: Callable[[bytes, Context], Awaitable[bytes]],
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    """Wrap a handler of one request with one answer."""

    async def handle(request: bytes, context: Context) -> bytes:
        try:
            with calls:
                return await handler(request, context)
        except Fault as fault:
            await abort(context, fault)
        except Exception as error:  # noqa: BLE001  # the caller gets an answer whatever happens
            await _abort_unforeseen(context, error)
        raise AssertionError  # abort always raises

    return handle


def stream(
    calls: Calls,
    handler: Callable[[object, Context], Awaitable[None]],
) -> Callable[[object, Context], Awaitable[None]]:
    """Wrap a handler that reads and writes as it likes."""

    async def handle(requests: object, context: Context) -> None:
        try:
            with calls:
                await handler(requests, context)
        except Fault as fault:
            await abort(context, fault)
        except Exception as error:  # noqa: BLE001  # the caller gets an answer whatever happens
            await _abort_unforeseen(context, error)

    return handle


def parse(message_class: type[Request], request: bytes) -> Request:
    """Parse a request.

    Raises:
        Fault: INVALID_ARGUMENT, where gRPC itself would answer INTERNAL or UNKNOWN.
    """
    try:
        return message_class.FromString(request)
    except DecodeError as error:
        raise unparsable(message_class.DESCRIPTOR.name) from error


async def abort(context: Context, fault: Fault) -> None:
    """End a call with a fault: status, rich details, and the pushback that gRPC's own retries obey."""
    trailing = [("grpc-status-details-bin", fault.status.SerializeToString())]
    if fault.retry_after is not None:
        trailing.append(("grpc-retry-pushback-ms", str(fault.retry_after_ms)))
    await context.abort(CODES[fault.status.code], fault.status.message, trailing_metadata=tuple(trailing))


async def _abort_unforeseen(context: Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError) or context.done():
        raise error
    log.error("unforeseen error in a call", exc_info=error)
    await abort(context, unforeseen())
