"""Opens the outbox that the settings name.

The modules for NATS are imported only where they are used: they take 0.2 s and 9 MB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from service.clock import Clock
from service.config.role import Role
from service.config.settings import Settings
from service.errors import SettingsError, needs_extra
from service.outbox.base import OpenOutbox, Refusal
from service.outbox.capacity import Bounds
from service.outbox.sqlite.outbox import SqliteOutbox

if TYPE_CHECKING:
    from service.outbox.jetstream.connection import NatsAccess
    from service.outbox.jetstream.streams import Plan

NATS_PATIENCE = 2.0  # seconds to wait for NATS at the start, so that a server whose NATS is up is ready at once


async def open_outbox(settings: Settings, clock: Clock, settled: Callable[[str, Refusal | None], None]) -> OpenOutbox:
    """Open the outbox that the settings name.

    Args:
        settings: of the server.
        clock: for due times and ages.
        settled: called with deliveries by other replicas that callers of this one wait for.

    Raises:
        OutboxUnusableError: the outbox cannot be used.
    """
    if settings.nats_servers is None:
        return SqliteOutbox(
            settings.outbox_path,
            clock=clock,
            window=settings.duplicate_window,
            window_ids=settings.duplicate_ids,
            retry_max_delay=settings.retry_max_delay,
            bounds=Bounds(settings.outbox_max_events, settings.outbox_max_bytes, settings.disk_free_floor),
        )
    with needs_extra("nats", "an outbox on NATS"):
        from service.outbox.jetstream.outbox import JetStreamOutbox  # noqa: PLC0415  see above

    outbox = JetStreamOutbox(
        nats_access(settings),
        nats_plan(settings),
        clock=clock,
        retry_max_delay=settings.retry_max_delay,
        settled=settled,
    )
    try:
        await outbox.start(NATS_PATIENCE)
    except BaseException:
        await outbox.close()
        raise
    return outbox


def check_role(role: Role, settings: Settings) -> None:
    """Check that a replica with these settings can have a role.

    Raises:
        SettingsError: the outbox is a file, so no other replica could do the rest of the work.
    """
    if role is not Role.ALL and settings.nats_servers is None:
        raise SettingsError(
            f"--role {role}: an outbox in a file belongs to one server, which does everything: leave --role out, or"
            " set POINTILLIST_OUTBOX_URL to nats://host:4222, which replicas share"
        )


def nats_access(settings: Settings) -> NatsAccess:
    """Return the address and credentials of NATS from the settings, which must name it."""
    from service.outbox.jetstream.connection import NatsAccess  # noqa: PLC0415  see above

    assert settings.nats_servers is not None
    return NatsAccess(
        settings.nats_servers,
        credentials_file=settings.nats_credentials_file,
        ca_file=settings.nats_ca_file,
        cert_file=settings.nats_cert_file,
        key_file=settings.nats_key_file,
    )


def nats_plan(settings: Settings) -> Plan:
    """Return the wanted configuration of the streams.

    The duplicate window is left to JetStream unless it is set: NATS holds it in memory, and a day of ids may be large.
    """
    from service.outbox.jetstream.streams import Plan  # noqa: PLC0415  see above

    is_window_set = "duplicate_window" in settings.model_fields_set
    return Plan(
        settings.nats_stream,
        replicas=settings.nats_replicas,
        bytes=settings.outbox_max_bytes,
        events=settings.outbox_max_events,
        duplicate_window=settings.duplicate_window if is_window_set else None,
    )
