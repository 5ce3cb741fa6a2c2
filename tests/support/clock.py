"""A clock that stands still until a test moves it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.waiting import until

START = 1_800_000_000.0  # seconds since the epoch; any moment will do
TICK = 0.01  # seconds


@dataclass
class HandTimer:
    """A call that is to come."""

    at: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """See that it does not come."""
        self.cancelled = True


@dataclass
class HandClock:
    """A Clock that is moved by hand; its times are the same unless `off` and `correction` part them."""

    now: float = START
    off: float = 0.0
    correction: float = 0.0
    timers: list[HandTimer] = field(default_factory=list)

    def wall(self) -> float:
        """Seconds since the epoch, as a jumping clock shows them."""
        return self.now + self.off

    def steady(self) -> float:
        """Seconds, never jumping."""
        return self.now

    def corrected(self) -> float:
        """Seconds since the epoch, as they are stored."""
        return self.now + self.correction

    def call_later(self, seconds: float, callback: Callable[[], None]) -> HandTimer:
        """Have `callback` called by the move that brings the clock there."""
        timer = HandTimer(self.now + seconds, callback)
        self.timers.append(timer)
        return timer

    def move(self, seconds: float) -> None:
        """Let time pass, and call what is due by then."""
        self.now += seconds
        # Timers that are set from now on wait for the next move.
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now and not timer.cancelled]
        for timer in due:
            if not timer.cancelled:
                timer.callback()

    async def tick_until(self, condition: Callable[[], object]) -> None:
        """Let time pass a little at a time until a condition holds, so that a timer that is set late fires too."""

        def ticked() -> object:
            self.move(TICK)
            return condition()

        await until(ticked)
