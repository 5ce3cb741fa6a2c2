"""Progress of sending a file: a bar on a terminal, otherwise a line now and then.

Both are for a person who wonders whether it is alive and when it ends, so they look at the clock and do not wait for
answers: a server that is gone shows, too. A short run writes no line, so that a log has no more of it than it needs.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeAlias

from service.cli.console import say
from service.cli.input_file import SegmentFile
from service.cli.send.pace import Pace
from service.cli.send.stream import Summary

BAR_INTERVAL = 0.2  # seconds between two looks on a terminal
LINE_INTERVAL = 10.0  # seconds between two lines in a log: an hour's import has 360

_Display: TypeAlias = Callable[[int, str], None]
"""Shows how many bytes of the file are read, and words."""


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
        looking = asyncio.create_task(_look(messages, summary, BAR_INTERVAL if on_terminal else line_interval, display))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def _look(messages: SegmentFile, summary: Summary, interval: float, display: _Display) -> None:
    pace = Pace(messages.size, time.monotonic())
    while True:
        await asyncio.sleep(interval)
        pace.look(time.monotonic(), summary.answered, messages.position)
        words = pace.words()
        display(messages.position, words if summary.is_connected else f"{words}; waiting for the server")


@contextlib.contextmanager
def _bar(messages: SegmentFile) -> Iterator[_Display]:
    """A bar that goes when it ends; where nobody knows the size it only moves."""
    # Rich takes a tenth of a second to import, which a run without a terminal need not pay.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 %, 0 events" if messages.size else "0 events", total=messages.size)
        yield lambda position, words: bar.update(task, completed=position, description=words)


@contextlib.contextmanager
def _lines() -> Iterator[_Display]:
    yield lambda _, words: say(f"progress: {words}")
