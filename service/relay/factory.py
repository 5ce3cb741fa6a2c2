"""The sender that the settings name, and the log lines of the flow."""

import contextlib
from collections.abc import Callable

import structlog

from service.clock import Clock
from service.config.role import Role
from service.config.settings import Settings
from service.mapping.mapping import Mapping
from service.pointillist.client import connect
from service.relay.flow import Cause, Flow, State
from service.relay.local_sender import LocalSender
from service.relay.worker_pool import WorkerPool
from service.relay.worker_protocol import SetUp
from service.telemetry.metrics import Metrics

ADVICE = {
    Cause.SETUP: "check the API token and POINTILLIST_API_URL; the events are kept, and one at a time is tried",
    Cause.REFUSALS: "Pointillist refuses every event: check the token, the mapping and POINTILLIST_API_URL;"
    " then pointillist-destination dead-letters replay --all",
    Cause.OUTAGE: "Pointillist cannot be reached or fails; the events are kept, and one at a time is tried",
    Cause.DEAD_LETTERS_FULL: "replay or delete dead letters, or raise POINTILLIST_DEAD_LETTER_MAX_EVENTS",
}

log = structlog.get_logger()


def make_sender(
    settings: Settings,
    role: Role,
    *,
    mapping: Callable[[], Mapping],
    token: Callable[[], str],
    clock: Clock,
    stack: contextlib.AsyncExitStack,
) -> LocalSender | WorkerPool:
    """Return a sender in this process, or a pool of worker processes.

    Args:
        settings: name the sender, Pointillist's address and its limits.
        role: of this replica; one that relays nothing needs no workers.
        mapping: returns the mapping in force.
        token: returns the API token in force.
        clock: measures the POSTs.
        stack: closes the sender and its HTTP client.

    Raises:
        SettingsError: the address, a file or the proxy cannot be used.
    """
    pointillist = connect(  # with workers too, so that an unusable address or file is refused at the start
        client=settings.http_client,
        url=settings.api_url,
        token=token,
        timeout=settings.request_timeout,
        max_connections=settings.max_concurrency,
        ca_file=settings.api_ca_file,
        proxy=settings.api_proxy,
    )
    stack.push_async_callback(pointillist.close)
    if not (settings.relay_workers and role.relays):
        return LocalSender(mapping=mapping, pointillist=pointillist, clock=clock)
    set_up = SetUp(
        client=settings.http_client,
        url=settings.api_url,
        timeout=settings.request_timeout,
        max_connections=settings.max_concurrency,
        ca_file=settings.api_ca_file,
        proxy=settings.api_proxy,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    workers = WorkerPool(settings.relay_workers, set_up, mapping=mapping, token=token, clock=clock)
    stack.push_async_callback(workers.stop, 0.0)  # if the start fails; otherwise they have exited by then
    return workers


def report_flow(flow: Flow, metrics: Metrics) -> None:
    """Show a change of the relay's state in the log and the metrics."""
    metrics.relay_state.state(flow.state.value)
    if flow.state is State.FLOWING:
        log.info("relay resumed")
    elif flow.cause is not None:
        metrics.pauses[flow.cause.value].inc()
        log.warning(
            "relay paused",
            state=flow.state.value,
            cause=flow.cause.value,
            answer=flow.answer,
            advice=ADVICE[flow.cause],
        )
