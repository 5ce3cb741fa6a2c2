"""The gRPC health service: Check, Watch and List over the names of health.py.

grpcio-health-checking's own Watch writes while it holds the lock that a change of status needs, so that one watcher who
does not read stops every change. Here a watcher is told the newest status whenever it can take one, and nobody waits
for it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2

from service.server.health import NAMES, Health
from service.server.request_reading import Context, RequestReading
from service.server.rpc import abort, parse
from service.server.status import StatusError, too_many_watchers, unexpected
from service.telemetry.access_log import host

SERVICE_NAME = "grpc.health.v1.Health"
MAX_WATCHERS = 1_000  # of one listener that read what they are told
MAX_WATCHERS_OF_ADDRESS = 20
MAX_STUCK_WATCHERS = 4_000  # of one listener that do not; each takes some 30 KiB until its connection ends
STUCK_AFTER = 5.0  # seconds for which a write has stood
MAX_NAME = 256  # bytes; a longer name is unknown
READING_PLACES = 16  # requests that are being read at a time
READING_SHARE = 8  # of them from one address
LONGEST_READ = 5.0  # seconds
CONTENDED_READ = 0.05  # seconds, while others wait: a request of health comes with its headers

log = structlog.get_logger()


class _Watcher:
    """One call of Watch."""

    __slots__ = ("writes_since",)

    def __init__(self) -> None:
        self.writes_since: float | None = None
        """When the write under way began; None while there is none."""

    def is_stuck(self, now: float) -> bool:
        """Return True if it has not taken what it was told for long."""
        return self.writes_since is not None and now - self.writes_since > STUCK_AFTER


class HealthService:
    """The handlers of one listener."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._reading = RequestReading(READING_PLACES, READING_SHARE, LONGEST_READ, CONTENDED_READ)
        self._watchers: dict[str, set[_Watcher]] = {}

    async def check(self, context: Context) -> bytes:
        """Answer with the status of a name now.

        Raises:
            StatusError: NOT_FOUND, where there is no such name.
        """
        name = await self._read_name(context)
        status = self._health.status(name)
        if status is None:
            known = ", ".join(repr(known) for known in NAMES)
            message = f"there is no such name; known are {known}, as far as this replica's role has them"
            raise StatusError(code_pb2.NOT_FOUND, "UNKNOWN_NAME", message)
        return health_pb2.HealthCheckResponse(status=status).SerializeToString()

    async def list(self, context: Context) -> bytes:
        """Answer with the status of every name."""
        messages: Any = health_pb2  # whose stubs are older than List
        parse(messages.HealthListRequest, await self._read(context))
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status) for name, status in self._health.statuses.items()
        }
        answer: bytes = messages.HealthListResponse(statuses=statuses).SerializeToString()
        return answer

    async def watch(self, context: Context) -> None:
        """Tell the status of a name, and each change of it, until the caller ends the call.

        Raises:
            StatusError: UNIMPLEMENTED, where there are too many watchers; clients then go on without.
        """
        name = await self._read_name(context)
        address = host(context.peer())
        watcher = self._place(address)
        try:
            told: int | None = None
            while True:
                status = self._health.status(name)
                if status is None:
                    status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status == told:
                    await self._health.changed()
                    continue
                watcher.writes_since = time.monotonic()
                await context.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())
                watcher.writes_since = None
                told = status
        finally:
            self._watchers[address].discard(watcher)
            if not self._watchers[address]:
                del self._watchers[address]

    def _place(self, address: str) -> _Watcher:
        """Count a watcher.

        Raises:
            StatusError: UNIMPLEMENTED.
        """
        of_address = self._watchers.get(address, ())
        now = time.monotonic()
        if (
            len(of_address) >= MAX_WATCHERS_OF_ADDRESS
            and sum(not watcher.is_stuck(now) for watcher in of_address) >= MAX_WATCHERS_OF_ADDRESS
        ):
            raise too_many_watchers(MAX_WATCHERS_OF_ADDRESS)
        if sum(map(len, self._watchers.values())) >= MAX_WATCHERS:
            stuck = Counter(watcher.is_stuck(now) for some in self._watchers.values() for watcher in some)
            if stuck[False] >= MAX_WATCHERS or stuck[True] >= MAX_STUCK_WATCHERS:
                raise too_many_watchers(MAX_WATCHERS)
        watcher = _Watcher()
        self._watchers.setdefault(address, set()).add(watcher)
        return watcher

    async def _read_name(self, context: Context) -> str | None:
        """Read a request; returns None for a name that is too long to be one."""
        name = parse(health_pb2.HealthCheckRequest, await self._read(context)).service
        return name if len(name.encode()) <= MAX_NAME else None

    async def _read(self, context: Context) -> bytes:
        return await self._reading.read(context, host(context.peer()), "request of grpc.health.v1.Health")


def handlers(health: Health) -> grpc.GenericRpcHandler:
    """Return the methods of one listener, as gRPC registers them.

    They are not registered by name: where grpc.aio's server is ended by a malformed frame, it frees what its core still
    writes to for each method that is.
    """
    service = HealthService(health)
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            "Check": grpc.stream_unary_rpc_method_handler(_answered(service.check)),
            "List": grpc.stream_unary_rpc_method_handler(_answered(service.list)),
            "Watch": grpc.stream_stream_rpc_method_handler(_answered(service.watch)),
        },
    )


Answer: TypeAlias = bytes | None


def _answered(handler: Callable[[Context], Awaitable[Answer]]) -> Callable[[object, Context], Awaitable[Answer]]:
    """Have the faults of a handler answered with their status."""

    async def handle(_: object, context: Context) -> Answer:
        try:
            return await handler(context)
        except StatusError as fault:
            await abort(context, fault)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            raise
        except Exception as error:
            if context.done():
                raise
            log.exception("unexpected error in a call", exc_info=error)
            await abort(context, unexpected())
        raise AssertionError

    return handle
