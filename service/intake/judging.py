"""The turns in which batches are judged, so that one caller's large batches delay nobody else's small ones.

Judging 10,000 events takes the event loop a fifth of a second. Batches of up to SMALL_BATCH events are judged as they
come. Larger ones are judged one at a time, in slices between which the loop turns: one caller after the other, and one
of its streams after the other.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SMALL_BATCH = 100  # events
SLICE = 0.005  # seconds
MAX_TURNS = 40  # of the event loop between two slices
IDLE_TURN = 0.00005  # seconds; a turn in which nothing else was done is shorter

# Seconds for which a thread may keep the interpreter while others want it, as long as large batches are judged. The
# outbox's writer asks for it at each call of SQLite, and would wait 5 ms for each beside a loop that is always busy. At
# other times so short an interval costs a unary call a quarter more CPU.
BUSY_SWITCH_INTERVAL = 0.0005


class Slice:
    """A part of a long computation on the event loop."""

    def __init__(self) -> None:
        self._ends_at = time.perf_counter() + SLICE

    def is_over(self) -> bool:
        """Return True if the event loop shall turn before more is done."""
        return time.perf_counter() > self._ends_at

    async def next(self) -> None:
        """Let the event loop turn until it has nothing else to do, or for long enough; then begin the next slice.

        One turn is not enough: grpc.aio takes up one new call in about four turns.
        """
        for _ in range(MAX_TURNS):
            began_at = time.perf_counter()
            await asyncio.sleep(0)
            if time.perf_counter() - began_at < IDLE_TURN:
                break
        self._ends_at = time.perf_counter() + SLICE


class Judging:
    """The turns of all large batches of a server."""

    def __init__(self) -> None:
        self._is_busy = False
        self._usual_interval = sys.getswitchinterval()
        # By caller, and by stream of the caller; those whose turn it is come first.
        self._waiting: dict[str, dict[int, deque[asyncio.Future[None]]]] = {}

    @asynccontextmanager
    async def turn(self, caller: str, stream: int) -> AsyncIterator[Slice]:
        """Have the turn within the body; yields its first slice.

        Args:
            caller: its name; "" without one.
            stream: a number that tells it from other streams.
        """
        if self._is_busy:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(caller, {}).setdefault(stream, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._hand_on()
                raise
        else:
            self._usual_interval = sys.getswitchinterval()
            sys.setswitchinterval(BUSY_SWITCH_INTERVAL)
        self._is_busy = True
        try:
            yield Slice()
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        """Give the turn to who waits, or to nobody."""
        while self._waiting:
            caller, streams = next(iter(self._waiting.items()))
            stream, line = next(iter(streams.items()))
            turn = line.popleft()
            # Who was served goes behind the others.
            del streams[stream], self._waiting[caller]
            if line:
                streams[stream] = line
            if streams:
                self._waiting[caller] = streams
            if not turn.done():
                turn.set_result(None)
                return
        self._is_busy = False
        sys.setswitchinterval(self._usual_interval)
