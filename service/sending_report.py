"""What a person sees of a file that is sent: a progress bar on a terminal, and a summary at the end."""

import sys
from collections.abc import Mapping

from service.segment_file import OTHER_TYPES, SegmentFile, on_one_line
from service.sending import Summary, send
from service.target import Target


async def send_and_show(messages: SegmentFile, target: Target, batch_size: int) -> Summary:
    """Send a file, with a progress bar on standard error where that is a terminal; see `service.sending.send`."""
    if not sys.stderr.isatty():
        return await send(messages, target, batch_size)

    # Rich takes a tenth of a second to import, which a run without a terminal need not pay.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("0 events", total=messages.size)

        def show(summary: Summary) -> None:
            progress.update(task, completed=summary.answered_bytes, description=f"{summary.answered:,} events")

        return await send(messages, target, batch_size, show)


def report(summary: Summary, skipped: Mapping[str, int]) -> list[str]:
    """Say what became of a file, in lines.

    Args:
        summary: what the server answered.
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
