"""Errors in an outbox on NATS, and their remedies."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

from service.cli.doctor.finding import Finding, Grade, age_finding, dead_letters_finding
from service.config.settings import Settings
from service.config.units import format_size
from service.outbox.factory import nats_access, nats_plan
from service.outbox.jetstream.inspection import Inspection, inspect_streams

MONITORING_PORT = 8222  # the customary port of NATS' monitoring, where it is on
MONITORING_TIMEOUT = 2.0  # seconds

SYNC_ADVICE = (
    "set jetstream { sync_interval: always } on every server: by default NATS acknowledges an event up to two minutes"
    " before it is on disk, and a power cut of all servers that have it then loses it"
)


def nats_findings(settings: Settings, monitoring_port: int = MONITORING_PORT) -> Iterator[Finding]:
    """Look at NATS, the streams and the consumer.

    Args:
        settings: as `serve` would use them.
        monitoring_port: where NATS is asked whether it syncs always.
    """
    access, plan = nats_access(settings), nats_plan(settings)
    found = asyncio.run(inspect_streams(access, plan))
    if found.problem is not None:
        advice = "check POINTILLIST_OUTBOX_URL, POINTILLIST_NATS_CREDENTIALS_FILE and whether JetStream is enabled"
        yield Finding("nats", Grade.ERROR, found.problem, f"{advice}; until then serve refuses every event")
        return
    yield Finding("nats", Grade.OK, f"JetStream answers at {access.names}")
    yield _account(found, settings)
    yield _streams(found, settings)
    yield _sync([host.host for host in access.servers.hosts], monitoring_port)
    if plan.events_stream in found.missing:
        return
    yield _backlog(found)
    if found.oldest_at is not None:
        yield age_finding(found.oldest_at, None)
    yield dead_letters_finding(found.dead_letters, found.reasons, settings.dead_letter_max_events)


def _account(found: Inspection, settings: Settings) -> Finding:
    most = found.account.get("limits", {}).get("max_storage", -1)
    used = max(found.account.get("storage", 0), found.account.get("reserved_storage", 0))
    if most < 0:
        return Finding("account", Grade.OK, "NATS sets our account no limit of storage")
    text = f"{format_size(used)} of {format_size(most)} of our account's storage are used or promised"
    wanted = settings.outbox_max_bytes * settings.nats_replicas
    if found.missing and used + wanted > most:
        advice = (
            f"the outbox wants {format_size(wanted)}: raise max_storage of the account, or lower"
            " POINTILLIST_OUTBOX_MAX_BYTES; else serve does not start"
        )
        return Finding("account", Grade.ERROR, text, advice)
    return Finding("account", Grade.OK, text)


def _streams(found: Inspection, settings: Settings) -> Finding:
    if found.differences:
        advice = "change them, or set POINTILLIST_NATS_STREAM to another name; else serve does not start"
        return Finding("streams", Grade.ERROR, "; ".join(found.differences), advice)
    if found.missing:
        return Finding("streams", Grade.OK, f"{', '.join(found.missing)}: not there yet; serve makes what is missing")
    if found.replicas < settings.nats_replicas:
        text = f"the stream is kept on {found.replicas} of the {settings.nats_replicas} servers that the settings want"
        return Finding("streams", Grade.WARNING, text, "the next start of serve changes a stream that it made")
    return Finding("streams", Grade.OK, f"the streams and the consumer will do; kept {found.replicas} times")


def _sync(hosts: list[str], port: int) -> Finding:
    """NATS reports it to no client; its monitoring does, where it is on and can be reached."""
    reported = [answer for host in hosts if (answer := _syncs_always(host, port)) is not None]
    if not reported:
        text = f"whether NATS writes to disk before it acknowledges cannot be seen from here (no answer at port {port})"
        return Finding("sync_interval", Grade.WARNING, text, SYNC_ADVICE)
    if not all(reported):
        return Finding("sync_interval", Grade.WARNING, "NATS acknowledges before it writes to disk", SYNC_ADVICE)
    return Finding("sync_interval", Grade.OK, f"always, on {len(reported)} of {len(hosts)} servers; each has to be so")


def _syncs_always(host: str, port: int) -> bool | None:
    """Return True if a server does; None if it does not say."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is reached as clients reach it
    name = f"[{host}]" if ":" in host else host
    try:
        with opener.open(f"http://{name}:{port}/varz", timeout=MONITORING_TIMEOUT) as answer:
            return bool(json.load(answer)["jetstream"]["config"].get("sync_always", False))
    except Exception:  # noqa: BLE001  whatever answers there is not NATS, or says nothing of it
        return None


def _backlog(found: Inspection) -> Finding:
    waiting = {0: "no event waits", 1: "1 event waits"}.get(found.events, f"{found.events} events wait")
    text = f"{waiting}, {found.bytes / 2**20:.1f} MiB; {found.in_work} leased or put back for later"
    events_most, bytes_most = found.bounds
    if 0 < events_most <= found.events or 0 < bytes_most <= found.bytes:
        return Finding("backlog", Grade.ERROR, text, "the outbox is full: fix delivery, or raise its bounds")
    return Finding("backlog", Grade.OK, text)
