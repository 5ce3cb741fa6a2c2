"""A stream as its handler reads and writes it: counted, limited to its caller's rate, and ended in time."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from service.server.auth import Admission
from service.server.request_reading import END_OF_STREAM, Context
from service.server.status import StatusError, idle, stream_too_old
from service.telemetry.grpc_metrics import MethodMeter

MAX_STREAM_AGE = 1800.0  # seconds; connections (grpc_server.py) live longer, so that a stream ends by itself
MAX_STREAM_IDLE = 600.0  # seconds


class Stream:
    """Both directions of a stream, as its handler reads and writes them; counted, and limited to the caller's rate."""

    def __init__(
        self,
        context: Context,
        meter: MethodMeter,
        admission: Admission,
        count_events: Callable[[bytes], int],
        *,
        leave: Callable[[], None] = lambda: None,
        age_most: float = MAX_STREAM_AGE,
        idle_most: float = MAX_STREAM_IDLE,
    ) -> None:
        """Make it, at its start.

        Args:
            context: gRPC's side of it.
            meter: counts its messages.
            admission: whose it is.
            count_events: returns the number of events in a message.
            leave: has it count no more in what others share.
            age_most: seconds after which nothing more is read.
            idle_most: seconds to wait for a message.
        """
        self._context = context
        self.admission = admission
        """Whose it is, and what that caller may use now."""
        self.caller = admission.caller or ""
        """The name of its caller at its start; "" without one."""
        self.leave = leave
        """Has it count no more in what others share, and in what a stop of the server waits for."""
        self._meter = meter
        self._count_events = count_events
        self._age_most = age_most
        self._idle_most = idle_most
        self._ends_at = time.monotonic() + age_most
        self._over: StatusError | None = None
        self._is_over = asyncio.Event()
        self._reading: asyncio.Future[bytes] | None = None
        self.received = 0
        """Messages that were read."""
        self.refused: Counter[str] = Counter()
        """Events that were refused, by field of the contract."""
        self.bulk_puts = 0
        """Puts in bulk of its events that are not done."""

    def admit(self, admission: Admission) -> None:
        """Go on under what its caller may use now."""
        self.admission = admission

    def end(self, fault: StatusError) -> None:
        """Read nothing more: it ends with a fault, behind the answers to what was read."""
        if self._over is None:
            self._over = fault
            self._is_over.set()
            if self._reading is not None:
                self._reading.cancel()

    async def unless_over(self, awaitable: Awaitable[None]) -> None:
        """Await something before the next message is read.

        Raises:
            StatusError: the stream is over first.
        """
        task, over = asyncio.ensure_future(awaitable), asyncio.ensure_future(self._is_over.wait())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if self._over is not None:
                raise self._over
            await task
        finally:
            over.cancel()
            task.cancel()

    async def read(self) -> bytes:
        """Read a message, or END_OF_STREAM.

        A caller over its rate is read no faster, so that HTTP/2's flow control slows it; its stream does not fail.
        The wait is before a message is read, so that cancelling it loses none, and is no time of idleness.

        Raises:
            StatusError: the stream is over, has lived long enough, or nothing came for long.
        """
        if self._over is not None:
            raise self._over
        self._reading = asyncio.ensure_future(self._read())
        try:
            return await self._reading
        except asyncio.CancelledError:
            if self._over is not None:
                raise self._over from None
            raise
        finally:
            self._reading = None

    async def _read(self) -> bytes:
        if time.monotonic() > self._ends_at:
            raise stream_too_old(self._age_most)
        bucket = self.admission.bucket
        if bucket is not None and (debt := bucket.debt()) > 0:
            await asyncio.sleep(debt)
        message: bytes
        try:
            async with asyncio.timeout(self._idle_most):
                message = await self._context.read()
        except TimeoutError:
            raise idle(self._idle_most) from None
        if message is not END_OF_STREAM:
            self.received += 1
            self._meter.received.inc()
            if (bucket := self.admission.bucket) is not None:
                bucket.charge(max(1, self._count_events(message)))  # a request without events costs one
        return message

    async def begin(self) -> None:
        """Send the initial metadata, after which a status can follow a message that the caller has not read."""
        await self._context.send_initial_metadata(())

    async def write(self, message: bytes) -> None:
        """Write a message; returns once the caller's window had room for it."""
        await self._context.write(message)
        self._meter.sent.inc()
