"""Errors in an outbox file and its disk, and their remedies."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from service.cli.doctor.finding import Finding, Grade, age_finding, dead_letters_finding
from service.config.settings import Settings
from service.config.units import format_size
from service.errors import PointillistDestinationError
from service.outbox.sqlite.inspection import Inspection, inspect_file


def disk_finding(settings: Settings) -> Finding:
    """Check the folder of the outbox, and the free space of its disk."""
    folder = settings.outbox_path.absolute().parent
    floor, size = settings.disk_free_floor, settings.outbox_max_bytes
    try:
        free = shutil.disk_usage(_nearest_folder(folder)).free
    except OSError as error:
        return Finding("disk", Grade.ERROR, f"{folder}: {error.strerror}", "set POINTILLIST_OUTBOX_URL to another one")
    text = f"{free / 2**30:.1f} GiB free at {folder}, of which {format_size(floor)} are kept free"
    if not folder.is_dir():
        text = f"{folder} is not a folder that is there; {text}"
        return Finding("disk", Grade.ERROR, text, "make the folder, or set POINTILLIST_OUTBOX_URL")
    if free < floor:
        advice = f"new events are refused below POINTILLIST_DISK_FREE_FLOOR ({format_size(floor)}); make room"
        return Finding("disk", Grade.ERROR, text, advice)
    if free < floor + size:
        advice = (
            f"the outbox may grow to POINTILLIST_OUTBOX_MAX_BYTES ({format_size(size)}), which does not fit above"
            f" POINTILLIST_DISK_FREE_FLOOR ({format_size(floor)}); a long outage will stop intake early"
        )
        return Finding("disk", Grade.WARNING, text, advice)
    return Finding("disk", Grade.OK, text)


def _nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: a file in it mostly comes on the same disk."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), folder)


def outbox_findings(settings: Settings) -> Iterator[Finding]:
    """Check the file, its backlog and its dead letters."""
    path = settings.outbox_path
    if not path.absolute().parent.is_dir():
        advice = "make its folder first, which serve does not"
        yield Finding("outbox", Grade.ERROR, f"{path} cannot be made", advice)
        return
    if not path.exists():
        yield Finding("outbox", Grade.OK, f"{path} is not there yet; serve makes it")
        return
    try:
        found = inspect_file(path)
    except PointillistDestinationError as error:
        advice = "serve says the same at its start; docs/runbook.md says how to save the events of a damaged file"
        yield Finding("outbox", Grade.ERROR, str(error), advice)
        return
    if found.problems:
        advice = (
            "stop the server, and copy the file away with its -wal file; docs/runbook.md says how to save its events"
        )
        yield Finding("integrity", Grade.ERROR, "; ".join(found.problems), advice)
    else:
        yield Finding("integrity", Grade.OK, "the database is sound")
    yield _backlog(found, settings)
    if found.oldest is not None:
        yield age_finding(*found.oldest)
    yield dead_letters_finding(found.dead_letters, found.reasons, settings.dead_letter_max_events)


def _backlog(found: Inspection, settings: Settings) -> Finding:
    most = settings.outbox_max_events
    waiting = {0: "no event waits", 1: "1 event waits"}.get(found.events, f"{found.events} events wait")
    text = f"{waiting}, {found.bytes / 2**20:.1f} MiB"
    if found.bytes >= settings.outbox_max_bytes or (most is not None and found.events >= most):
        return Finding("backlog", Grade.ERROR, text, "the outbox is full: fix delivery, or raise its bounds")
    return Finding("backlog", Grade.OK, text)
