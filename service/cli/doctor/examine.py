"""The checks behind `pointillist-destination doctor`: errors in a set-up, and their remedies.

It looks only: the outbox is opened read-only, or NATS is asked, beside a running server or without one, and
Pointillist is asked something only with `probe`.
"""

from collections.abc import Callable, Iterator

from service.cli.client import Target
from service.cli.doctor.finding import Finding, Grade
from service.cli.doctor.listeners import listen_findings
from service.cli.doctor.pointillist import address_finding
from service.cli.doctor.sqlite import disk_finding, outbox_findings
from service.config.private_files import PRIVATE, open_to_others
from service.config.settings import Settings
from service.errors import PointillistDestinationError, needs_extra
from service.mapping.mapping_file import load_mapping

__all__ = ["Finding", "Grade", "examine"]


def examine(
    settings: Settings, probe: Callable[[], Finding] | None = None, server: Target | None = None
) -> Iterator[Finding]:
    """Run every check; each yields one finding or more.

    Args:
        settings: as `serve` would use them.
        probe: asks Pointillist one harmless question; None where nobody asked for it.
        server: how to call a server with TLS; None for a look at its certificate alone.
    """
    yield Finding("settings", Grade.OK, "can be used")
    yield _token(settings)
    yield _mapping(settings)
    for setting, path, mode in open_to_others(settings):
        yield Finding("files", Grade.WARNING, f"any user can read {path} (mode {mode}), of {setting}", PRIVATE)
    yield address_finding(settings)
    yield from listen_findings(settings, server)
    if settings.nats_servers is None:
        yield disk_finding(settings)
        yield from outbox_findings(settings)
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
        return Finding("mapping", Grade.ERROR, str(error), "fix the file, or unset POINTILLIST_MAPPING_FILE")
    return Finding("mapping", Grade.OK, str(settings.mapping_file or "the built-in one"))
