"""The gRPC servers: their options, TLS, health and reflection."""

from collections.abc import Iterable

import grpc

from service.config.address import Listen
from service.config.settings import Settings
from service.config.watched_file import WatchedFile
from service.errors import SettingsError
from service.intake.certificates import Certificates
from service.loopback import is_loopback
from service.server import health_service, reflection
from service.server.auth import Authenticator
from service.server.health import Health

MAX_MESSAGE_SIZE = 4 * 1024 * 1024  # bytes of one request; gRPC's own default, which callers count on
# With 100, a channel with 64 callers was refused streams: the next call comes before gRPC takes the last off its list.
MAX_STREAMS = 1000  # calls at a time on one connection; more wait in the caller
MAX_HEALTH_MESSAGE_SIZE = 4096  # bytes of one request on the listener of health alone
MAX_HEALTH_STREAMS = 100  # calls at a time on one of its connections
NO_COMPRESSION = 1  # the bit of "identity" alone
MIN_PING_INTERVAL = 5_000  # milliseconds; ordinary clients ping every 10 s or more
KEEPALIVE_INTERVAL = 60_000  # milliseconds between our own pings, which find connections that died silently
KEEPALIVE_TIMEOUT = 20_000  # milliseconds
# After this a caller is asked to connect again, so that callers spread over added replicas; gRPC spreads it by a tenth
# either way. Calls in progress go on meanwhile: the grace is longer than the rest of a stream's life
# (stream.MAX_STREAM_AGE) and the time for which it may be idle, so that no call is cut.
MAX_CONNECTION_AGE = 30 * 60_000  # milliseconds
CONNECTION_AGE_GRACE = 45 * 60_000  # milliseconds
MAX_CONNECTION_IDLE = 5 * 60_000  # milliseconds without a call, after which it is closed; a caller makes another

# gRPC's own bounds on calls that no handler has taken up answer CANCELLED, unseen by our code and counted nowhere. They
# are far above POINTILLIST_MAX_CALLS, so that a burst gets UNAVAILABLE with a time to try again.
MAX_PENDING_CALLS = 1_000_000  # beyond it gRPC cancels at random, and from three times as many on always
MAX_PENDING_TIME = 600  # seconds

OPTIONS = (
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", 3 * MAX_PENDING_CALLS),
    ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_TIME),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share
    ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE),
    ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE),
    ("grpc.max_connection_idle_ms", MAX_CONNECTION_IDLE),
    # Windows do not grow: a stream whose caller does not read costs 64 KiB, and not what its connection could carry.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL),
)

# A probe's request has some bytes, and a client of probes few calls.
HEALTH_OPTIONS = tuple(
    {
        **dict(OPTIONS),
        "grpc.max_receive_message_length": MAX_HEALTH_MESSAGE_SIZE,
        "grpc.max_concurrent_streams": MAX_HEALTH_STREAMS,
        "grpc.compression_enabled_algorithms_bitset": NO_COMPRESSION,
    }.items()
)

Server = grpc.aio.Server


def make_server(
    handlers: Iterable[grpc.GenericRpcHandler],
    names: Iterable[str],
    health: Health,
    *,
    reflect: bool,
    authenticator: Authenticator | None = None,
    unknown: grpc.GenericRpcHandler | None = None,
) -> grpc.aio.Server:
    """Make a server of services; it listens nowhere yet.

    Args:
        handlers: the services' methods.
        names: the services' full names, for reflection.
        health: its health.
        reflect: whether clients may ask for the contract.
        authenticator: admits callers; without it, everybody is admitted.
        unknown: is asked for methods that none of the others has.
    """
    server = grpc.aio.server(options=OPTIONS)
    all_handlers = [*handlers, health_service.handlers(health)]
    if reflect:
        shown = (*names, health_service.SERVICE_NAME, reflection.SERVICE_NAME)
        all_handlers.append(reflection.handlers(shown, authenticator))
    if unknown is not None:
        all_handlers.append(unknown)
    server.add_generic_rpc_handlers(tuple(all_handlers))
    return server


def make_health_server(health: Health, unknown: grpc.GenericRpcHandler) -> grpc.aio.Server:
    """Make a server that serves health alone, for probes that cannot speak TLS."""
    server = grpc.aio.server(options=HEALTH_OPTIONS)
    server.add_generic_rpc_handlers((health_service.handlers(health), unknown))
    return server


def listen(
    server: grpc.aio.Server, setting: str, address: Listen, tls: WatchedFile[Certificates] | None = None
) -> Listen:
    """Have a server listen, in plain text or with TLS; returns the address with the port that was really bound.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    try:
        if tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), _credentials(tls))
    except RuntimeError as error:
        message = f"{setting}: cannot listen on {address}; another program may be listening there, or it is not ours"
        raise SettingsError(message) from error
    return Listen(address.host, port)


def _credentials(files: WatchedFile[Certificates]) -> grpc.ServerCredentials:
    """Return credentials that follow certificate files; a caller without a certificate is refused if they name one.

    New connections get the certificates in force; those that are open stay as they are.
    """
    in_use = files.current()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates if they are new; a thread of gRPC's asks before each handshake."""
        nonlocal in_use
        current = files.current()
        if current is in_use:
            return None
        in_use = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(in_use),
        renewed,  # type: ignore[arg-type]  # None means that nothing is new; the stubs do not know it
        require_client_authentication=in_use.client_authority is not None,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pair = (certificates.key, certificates.certificate)
    return grpc.ssl_server_certificate_configuration([pair], certificates.client_authority)


def exposure(settings: Settings) -> list[str]:
    """Return advice on settings before other machines can reach the gRPC port; none on loopback."""
    if is_loopback(settings.grpc_listen.host):
        return []
    advice = []
    if settings.tls_cert_file is None:
        advice.append("calls travel in plain text: set POINTILLIST_TLS_CERT_FILE and POINTILLIST_TLS_KEY_FILE")
    if settings.callers_file is None and settings.tls_client_ca_file is None:
        advice.append("whoever reaches it may call: set POINTILLIST_CALLERS_FILE or POINTILLIST_TLS_CLIENT_CA_FILE")
    return advice
