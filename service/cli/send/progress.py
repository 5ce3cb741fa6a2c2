"""Progress of sending a file: a bar on a terminal, otherwise a line now and then.

Both are for a person who wonders whether it is alive and when it ends, so they look at the clock and do not wait for
answers: a server that is gone shows, too. A short run writes no line, so that a log has no more of it than it needs.
"""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple, TypeAlias

from service.cli.console import say
from service.cli.input_file import SegmentFile
from service.cli.send.stream import Summary

WINDOW = 30.0  # seconds that the rate is taken over: long enough to be steady, short enough to follow a slow server
MINUTE, HOUR = 60, 3600  # seconds
BAR_INTERVAL = 0.2  # seconds between updates on a terminal
LINE_INTERVAL = 10.0  # seconds between two lines in a log: an hour's import has 360

_Display: TypeAlias = Callable[[int, str], None]
"""Shows how many bytes of the file are read, and words."""


class _Sample(NamedTuple):
    """The progress at one moment."""

    at: float
    events: int
    position: int


class Pace:
    """Estimates from samples of the progress; pure, as times are passed in."""

    def __init__(self, size: int | None, now: float) -> None:
        """Begin with nothing done.

        Args:
            size: bytes of the whole file; None if it is unknown.
            now: seconds, of any clock that does not go back.
        """
        self._size = size
        self._samples = deque([_Sample(now, 0, 0)])

    def sample(self, now: float, events: int, position: int) -> None:
        """Record the progress: events that are answered, and bytes of the file that are read."""
        self._samples.append(_Sample(now, events, position))
        while len(self._samples) > 2 and self._samples[1].at <= now - WINDOW:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Recent events per second."""
        first, last = self._samples[0], self._samples[-1]
        return (last.events - first.events) / (last.at - first.at) if last.at > first.at else 0.0

    @property
    def share(self) -> float | None:
        """Return the share of the file that is read, from 0 to 1; None if it is unknown."""
        if self._size is None:
            return None
        return min(1.0, self._samples[-1].position / self._size) if self._size else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the rest is read; None if it is unknown, as when nothing was read recently."""
        first, last = self._samples[0], self._samples[-1]
        if self._size is None or last.position <= first.position or last.at <= first.at:
            return None
        return max(0, self._size - last.position) * (last.at - first.at) / (last.position - first.position)

    def words(self) -> str:
        """Return the progress on one line, such as `37 %, 123,400 events, 8,100 events/s, 1 min 40 s left`."""
        share, left = self.share, self.seconds_left
        words = [] if share is None else [f"{int(share * 100)} %"]
        words += [f"{self._samples[-1].events:,} events", f"{self.rate:,.0f} events/s"]
        return ", ".join(words if left is None else [*words, f"{_duration(left)} left"])


def _duration(seconds: float) -> str:
    """A duration as a person estimates one: `40 s`, `1 min 40 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


@contextlib.asynccontextmanager
async def progress(
    messages: SegmentFile, summary: Summary, line_interval: float = LINE_INTERVAL
) -> AsyncIterator[None]:
    """Show on standard error how a file gets on, as long as the context lasts.

    Args:
        messages: the file that is sent.
        summary: the outcome so far.
        line_interval: seconds between two lines where standard error is no terminal.
    """
    on_terminal = sys.stderr.isatty()
    with _bar(messages) if on_terminal else _lines() as display:
        watching = asyncio.create_task(
            _watch(messages, summary, BAR_INTERVAL if on_terminal else line_interval, display)
        )
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _watch(messages: SegmentFile, summary: Summary, interval: float, display: _Display) -> None:
    pace = Pace(messages.size, time.monotonic())
    while True:
        await asyncio.sleep(interval)
        pace.sample(time.monotonic(), summary.answered, messages.position)
        words = pace.words()
        display(messages.position, words if summary.is_connected else f"{words}; waiting for the server")


@contextlib.contextmanager
def _bar(messages: SegmentFile) -> Iterator[_Display]:
    """A bar that goes when it ends; without a known size it only moves."""
    # Rich takes a tenth of a second to import, which a run without a terminal need not pay.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 %, 0 events" if messages.size else "0 events", total=messages.size)
        yield lambda position, words: bar.update(task, completed=position, description=words)


@contextlib.contextmanager
def _lines() -> Iterator[_Display]:
    yield lambda _, words: say(f"progress: {words}")
