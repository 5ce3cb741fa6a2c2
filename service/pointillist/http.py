"""The part that both HTTP clients share: headers, time limits, and the reading of answers."""

import asyncio
import errno
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

from service import percent
from service.pointillist.answer import BODY_START, Answer, Failure
from service.pointillist.echoed_token import without_token

BODY_TIME = 1.0  # seconds after the header that a body may take; then its connection is dropped
DRAINED = 64 * 1024  # bytes of a 2xx body that are read, so that its connection can be used again
KEPT = 4 * 1024  # bytes of another body that are read, for its start
DETAIL = 200  # characters of a library's message about a failure
IDLE_TIME = 30.0  # seconds; shorter than the 60 after which load balancers close, so that none closes under a POST

SUCCESS = tuple(Answer(status) for status in range(200, 300))
"""The answers to a complete 2xx header, made once."""

FAILURES = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ECONNRESET: Failure.RESET,
    errno.ECONNABORTED: Failure.RESET,
    errno.EPIPE: Failure.RESET,
    errno.ETIMEDOUT: Failure.TIMEOUT,
}
"""Failures by the operating system's error numbers."""


def _user_agent() -> str:
    try:
        return f"pointillist-destination/{version('pointillist-destination')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "pointillist-destination/0"


USER_AGENT = _user_agent()


def idempotency_key(message_id: str) -> str:
    """Write a message id as a header's value: `%` and every byte of its UTF-8 outside 0x21 to 0x7E as %XX."""
    return percent.encode(message_id)


class Within:
    """Cancels the awaited operation once its time is over, and swallows that; made by `Allowance`."""

    __slots__ = ("_cancelling", "_task", "due", "expired", "over")

    def __init__(self, due: float) -> None:
        self.due = due
        """When the time is over, by the event loop's clock."""
        self.expired = self.over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        return self

    def expire(self) -> None:
        """Cancel the awaited operation, unless it is over."""
        if not self.over:
            self.expired = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Swallow our own cancellation, and let one from outside through."""
        self.over = True
        return (
            self.expired
            and self._task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        )


class Allowance:
    """Gives each of many awaits the same time, by one timer for all: one for each costs a twentieth of a POST."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: deque[Within] = deque()  # in the order of their ends
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Within:
        """Begin one; enter it at once."""
        loop = asyncio.get_running_loop()
        within = Within(loop.time() + self._seconds)
        begun = self._begun
        while begun and begun[0].over:
            begun.popleft()
        begun.append(within)
        if self._timer is None:
            self._timer = loop.call_at(within.due, self._look, loop)
        return within

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        begun, now = self._begun, loop.time()
        while begun and (begun[0].over or begun[0].due <= now):
            begun.popleft().expire()
        self._timer = loop.call_at(begun[0].due, self._look, loop) if begun else None


def body_start(body: bytes, token: str) -> str:
    """Write the start of a body for people."""
    return without_token(token, body.decode(errors="replace"))[:BODY_START]


def failed(failure: Failure, detail: str, token: str) -> Answer:
    """Return the answer of a failure; a library's message may quote the server's bytes."""
    return Answer(failure=failure, detail=without_token(token, detail)[:DETAIL])


def not_made(error: Exception) -> Answer:
    """Say that a request could not be made, by the kind of the error alone: its text may quote the token."""
    detail = f"the request could not be made ({type(error).__name__}): check the API token and its file"
    return Answer(failure=Failure.OTHER, detail=detail)
