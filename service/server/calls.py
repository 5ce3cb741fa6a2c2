"""The calls in progress: how many there may be, in all and of each caller, and what their answers may hold."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Self

from service.intake.answer_budget import AnswerBudget
from service.server.auth import Authenticator
from service.server.request_reading import Context, RequestReading
from service.server.status import StatusError, too_many_calls, too_many_calls_of, unread_answers
from service.server.stream import Stream
from service.telemetry.access_log import AccessLog
from service.telemetry.grpc_metrics import GrpcMetrics, MethodMeter, MethodType
from service.telemetry.tracing import Tracing

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
        self.metrics = metrics or GrpcMetrics()
        self._active = 0
        self._active_of: Counter[str] = Counter()
        self._streams: dict[Stream, str] = {}  # with the paths of their methods
        self._idle = asyncio.Event()
        self._idle.set()

    def with_own_bound(self) -> "Calls":
        """Return one with the same parts and a bound of its own, for calls that others must not shut out."""
        return Calls(
            most=self._most,
            reading_places=OPERATORS_READING_PLACES,
            authenticator=self.authenticator,
            by_certificate=self.by_certificate,
            metrics=self.metrics,
            access_log=self.access_log,
            tracing=self.tracing,
        )

    def method(self, method_type: MethodType, service: str, name: str) -> "Method":
        """Return the wrapper of a method that will be served."""
        return Method(self, f"/{service}/{name}", self.metrics.meter(method_type, service, name))

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

    @contextlib.contextmanager
    def rechecked(self, stream: Stream, path: str) -> Iterator[None]:
        """Have a stream end within the body if the callers file takes its caller's right to it away."""
        self._streams[stream] = path
        try:
            yield
        finally:
            del self._streams[stream]

    def recheck(self) -> None:
        """Look at the caller of each stream again, as the callers file has changed."""
        if self.authenticator is None:
            return
        for stream, path in list(self._streams.items()):
            try:
                stream.admit(self.authenticator.again(stream.admission, path))
            except StatusError as fault:
                stream.end(fault)

    def note_unknown(self, path: str) -> None:
        """Count and log a call of a method that there is not."""
        self.metrics.unknown_methods.inc()
        if self.access_log is not None:
            self.access_log.note_unknown(path)

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


class Method:
    """One method as it is served."""

    __slots__ = ("calls", "meter", "path")

    def __init__(self, calls: Calls, path: str, meter: MethodMeter) -> None:
        self.calls = calls
        self.path = path
        self.meter = meter
