"""The sender that the settings name."""

import contextlib
from collections.abc import Callable

from service.clock import Clock
from service.config.role import Role
from service.config.settings import Settings
from service.mapping.mapping import Mapping
from service.pointillist.client import connect
from service.relay.local_sender import LocalSender
from service.relay.worker_pool import WorkerPool
from service.relay.worker_protocol import SetUp


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
