"""The courier that the settings name."""

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
    """Lanes in this process, or workers in processes of their own.

    Args:
        settings: say which.
        role: of this replica; one that relays nothing needs no workers.
        mapping: gives the mapping in force.
        token: gives the API token in force.
        clock: its time.
        stack: closes what is opened.

    Raises:
        SettingsError: the address, a file or the proxy cannot be used.
    """
    pointillist = connect(  # with workers too, so that what cannot be used is refused at the start
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
    stack.push_async_callback(workers.stop, 0.0)  # where the start fails; else they have ended by then
    return workers
