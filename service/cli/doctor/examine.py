"""The checks behind `pointillist-destination doctor`: errors in a set-up, and their remedies.

It looks only: the outbox is opened read-only, or NATS is asked, beside a running server or without one, and
Pointillist is asked something only with `probe`.
"""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from service.cli.doctor.finding import Finding, Grade
from service.cli.doctor.listeners import listen_findings
from service.cli.doctor.outbox import age_finding, count, dead_letters_finding
from service.config.settings import Settings
from service.config.units import format_size
from service.errors import PointillistDestinationError, needs_extra
from service.mapping.mapping_file import load_mapping
from service.outbox.sqlite.inspection import Inspection, inspect_file

__all__ = ["Finding", "Grade", "examine"]

NAME_TIMEOUT = 5.0  # seconds


def examine(settings: Settings, probe: Callable[[], Finding] | None = None) -> Iterator[Finding]:
    """Run every check; each yields one finding or more.

    Args:
        settings: as `serve` would use them.
        probe: asks Pointillist one harmless question; None where nobody asked for it.
    """
    yield Finding("settings", Grade.OK, "can be used")
    yield _token(settings)
    yield _mapping(settings)
    yield _address(settings)
    yield from listen_findings(settings)
    if settings.nats_servers is None:
        yield _disk(settings)
        yield from _outbox(settings)
    else:
        with needs_extra("nats", "an outbox on NATS"):
            from service.cli.doctor.nats import nats_findings  # noqa: PLC0415  it takes 0.2 s, and an extra

        yield from nats_findings(settings)
    if probe is not None:
        yield probe()


def _token(settings: Settings) -> Finding:
    try:
        settings.require_token()
    except PointillistDestinationError as error:
        return Finding("token", Grade.ERROR, str(error), "without it serve does not start")
    return Finding("token", Grade.OK, "is set")


def _mapping(settings: Settings) -> Finding:
    try:
        load_mapping(settings.mapping_file)
    except PointillistDestinationError as error:
        return Finding("mapping", Grade.ERROR, str(error), "mend the file, or unset POINTILLIST_MAPPING_FILE")
    return Finding("mapping", Grade.OK, str(settings.mapping_file or "the built-in one"))


def _address(settings: Settings) -> Finding:
    parts = urlsplit(settings.api_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if settings.api_proxy is not None:
        return Finding("address", Grade.OK, f"{host} is reached through a proxy; only --probe can tell more")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:  # the latter for an impossible host name, such as a..b
        reason = error.strerror if isinstance(error, OSError) else error
        advice = "check POINTILLIST_API_URL and this machine's DNS; until then everything waits in the outbox"
        return Finding("address", Grade.ERROR, f"{host} cannot be resolved: {reason}", advice)
    try:
        socket.create_connection((host, port), NAME_TIMEOUT).close()
    except OSError as error:
        advice = "check POINTILLIST_API_URL, the firewall and the proxy; until then everything waits in the outbox"
        return Finding("address", Grade.ERROR, f"{host}:{port} does not answer: {error}", advice)
    return Finding("address", Grade.OK, f"{host}:{port} answers ({count(len(addresses), 'address', 'addresses')})")


def _disk(settings: Settings) -> Finding:
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


def _outbox(settings: Settings) -> Iterator[Finding]:
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
        return Finding("backlog", Grade.ERROR, text, "the outbox is full: mend delivery, or raise its bounds")
    return Finding("backlog", Grade.OK, text)
