"""Sending a file for a person: the progress, and the outcome at the end."""

import asyncio
import time
from collections.abc import Mapping

from service.cli.client import Target
from service.cli.console import say, show
from service.cli.input_file import OTHER_TYPES, SegmentFile, on_one_line
from service.cli.send.progress import progress
from service.cli.send.refused import RefusedFile
from service.cli.send.stream import AGAIN, Summary, send
from service.errors import PointillistDestinationError


def send_and_report(messages: SegmentFile, target: Target, batch_size: int, refused: RefusedFile | None) -> Summary:
    """Send a file, with its progress on standard error, and write the outcome to standard output.

    The outcome so far is written for a file that is sent in part, too, unless no server was ever reached.

    Raises:
        SendingError, UnreadableFileError, OutputError: as `service.cli.send.stream.send` does.
        KeyboardInterrupt: somebody pressed Ctrl-C.
    """
    began = time.monotonic()
    summary = Summary()

    async def send_and_show() -> None:
        async with progress(messages, summary):
            await send(messages, target, batch_size, refused=refused, summary=summary)

    def say_all() -> None:
        if messages.ignored_line is not None:
            say(messages.ignored_line)
        show(*report(summary, messages.skipped), *_totals(messages, summary, time.monotonic() - began))

    try:
        asyncio.run(send_and_show())
    except (PointillistDestinationError, KeyboardInterrupt) as error:
        if summary.was_reached:
            say_all()
            if isinstance(error, KeyboardInterrupt):
                say(f"interrupted; {AGAIN}")
        raise
    say_all()
    return summary


def _totals(messages: SegmentFile, summary: Summary, seconds: float) -> list[str]:
    return [
        f"read: {messages.lines} lines, {messages.unreadable} of them unreadable",
        f"took: {seconds:.1f} s, {summary.answered / max(seconds, 0.001):.0f} events/s",
    ]


def report(summary: Summary, skipped: Mapping[str, int]) -> list[str]:
    """Return the outcome of a file, in lines.

    Args:
        summary: of the server's answers.
        skipped: messages that Pointillist is not sent, by type.
    """
    lines = [
        f"accepted: {summary.accepted}",
        f"duplicates: {summary.duplicates}",
        f"filtered: {summary.filtered}",
        f"skipped: {skipped_words(skipped)}",
        f"rejected: {summary.rejected}",
        *(f"  {on_one_line(str(rejection))}" for rejection in summary.rejections),
    ]
    if (unnamed := summary.rejected - len(summary.rejections)) > 0:
        lines.append(f"  and {unnamed} more")
    if summary.sent_again:
        lines.append(
            f"sent again: {summary.sent_again}, after the stream broke; those that had been accepted are duplicates"
        )
    return lines


def skipped_words(skipped: Mapping[str, int]) -> str:
    """Say how many messages were skipped, and of which types: `4 (page 2, group 1, unknown type 'trak' 1)`."""
    total = sum(skipped.values())
    by_type = (
        f"{name if name in OTHER_TYPES else f'unknown type {name!r}'} {count}" for name, count in skipped.items()
    )
    return f"{total} ({', '.join(by_type)})" if total else "0"
