"""The gRPC servers: their options, health and reflection."""

from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from service.errors import SettingsError
from service.health import Health
from service.settings import Listen

MESSAGE_SIZE_MOST = 4 * 1024 * 1024  # bytes of one request; gRPC's own default, which callers count on
STREAMS_MOST = 1000  # calls at a time on one connection; more wait in the caller
PING_INTERVAL_LEAST = 5_000  # milliseconds; ordinary clients ping every 10 s or more
KEEPALIVE_INTERVAL = 60_000  # milliseconds between our own pings, which find connections that died silently
KEEPALIVE_TIMEOUT = 20_000  # milliseconds

OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share
    ("grpc.max_receive_message_length", MESSAGE_SIZE_MOST),
    ("grpc.max_concurrent_streams", STREAMS_MOST),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_LEAST),
)


def make_server(
    handlers: Iterable[grpc.GenericRpcHandler], names: Iterable[str], health: Health, *, reflect: bool
) -> grpc.aio.Server:
    """Make a server of services; it listens nowhere yet.

    Args:
        handlers: the services' methods.
        names: the services' full names, for reflection.
        health: its health.
        reflect: whether clients may ask for the contract.
    """
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(tuple(handlers))
    health.add_to(server)
    if reflect:
        shown = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, server)
    return server


def make_health_server(health: Health) -> grpc.aio.Server:
    """Make a server that serves health alone, for probes that cannot speak TLS."""
    server = grpc.aio.server(options=OPTIONS)
    health.add_to(server)
    return server


def listen(server: grpc.aio.Server, setting: str, address: Listen) -> Listen:
    """Have a server listen; returns the address with the port that was really bound.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        message = f"{setting}: cannot listen on {address}; another program may be listening there, or it is not ours"
        raise SettingsError(message) from error
    return Listen(address.host, port)
