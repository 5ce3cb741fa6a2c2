"""Can the server listen where the settings have it listen, or does it do so already?"""

import errno
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.cli.client import Target, open_channel
from service.cli.doctor.finding import Finding, Grade
from service.config.address import Listen, called_at
from service.config.settings import Settings
from service.probe import LIVENESS, knows_health

TIMEOUT = 3.0  # seconds
OUR_METRICS = b"pointillist_destination_"  # the prefix of our metrics


def listen_findings(settings: Settings, server: Target | None = None) -> Iterator[Finding]:
    """Look at every address that `serve` would listen on; one finding each.

    Args:
        settings: as `serve` would use them.
        server: how to call the gRPC port where it has TLS; None for a look at its certificate alone.
    """
    certificate = settings.tls_cert_file
    if server is not None and server.certificates is not None:
        otherwise = "; if it is a server of ours, --ca-file, --cert-file or --key-file is not right for it"
        yield _look(
            "grpc_listen", settings.grpc_listen, lambda at: _answers(replace(server, address=str(at))), otherwise
        )
    elif certificate is None:
        yield _look("grpc_listen", settings.grpc_listen, lambda at: knows_health(str(at)))
    else:
        yield _look("grpc_listen", settings.grpc_listen, lambda at: _shows(at, certificate))
    if settings.metrics_listen is not None:
        yield _look("metrics_listen", settings.metrics_listen, _has_our_metrics)
    if settings.health_listen is not None:
        yield _look("health_listen", settings.health_listen, lambda at: knows_health(str(at)))


def _look(name: str, listen: Listen, is_ours: Callable[[Listen], bool], otherwise: str = "") -> Finding:
    variable = f"POINTILLIST_{name.upper()}"
    try:
        _bind(listen)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            if is_ours(called_at(listen)):
                return Finding(name, Grade.OK, f"a server of ours answers at {listen}")
            advice = f"end that program, or set {variable} to a free port{otherwise}"
            return Finding(name, Grade.ERROR, f"another program listens on {listen}", advice)
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        advice = f"set {variable} to an address and a port that are this machine's to listen on"
        return Finding(name, Grade.ERROR, f"cannot listen on {listen}: {reason}", advice)
    except UnicodeError:  # an impossible host name, such as a..b
        advice = f"set {variable} to an address of this machine"
        return Finding(name, Grade.ERROR, f"cannot listen on {listen}: {listen.host} is no host", advice)
    return Finding(name, Grade.OK, f"{listen} is free")


def _bind(listen: Listen) -> None:
    """Listen for a moment; raises OSError where that cannot be done."""
    flags = socket.AI_PASSIVE
    family, kind, protocol, _, address = socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=flags
    )[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        listener.bind(address)
        listener.listen(1)


def _shows(at: Listen, certificate: Path) -> bool:
    """Return True if the server there has the certificate that the settings name; it may ask for a client's."""
    try:
        shown = ssl.get_server_certificate((at.host, at.port), timeout=TIMEOUT)
        return "".join(shown.split()) in "".join(certificate.read_text("latin-1").split())
    except OSError:
        return False


def _answers(server: Target) -> bool:
    """Return True if a server of ours answers a call over TLS, whatever it says of its health."""
    with open_channel(server) as channel:
        try:
            check = HealthStub(channel).Check  # type: ignore[attr-defined]  # not in its stubs
            check(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=TIMEOUT)
        except grpc.RpcError:
            return False
    return True


def _has_our_metrics(at: Listen) -> bool:
    # No proxy: it is this machine that is asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{at}/metrics", timeout=TIMEOUT) as answer:
            return OUR_METRICS in answer.read()
    except (OSError, ValueError):
        return False
    except Exception:  # noqa: BLE001  http.client's own errors: the server does not speak HTTP
        return False
