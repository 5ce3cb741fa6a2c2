"""Asks a running server for its health: `python -m service.probe [NAME]`, for the image's HEALTHCHECK.

NAME is one of the health names, `liveness` by default. Exit code 0 means SERVING. It speaks plain text: a server with
TLS is asked on the port that POINTILLIST_HEALTH_LISTEN opens.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.config.address import called_at
from service.config.settings import load_settings
from service.errors import SettingsError

TIMEOUT = 3.0  # seconds
DIRECT = (("grpc.enable_http_proxy", 0),)
"""Channel options: no proxy, though gRPC would follow `grpc_proxy`, `https_proxy` and `http_proxy` to loopback too."""
LIVENESS = "liveness"


def is_serving(address: str, name: str) -> bool:
    """Return True if the server at an address, asked in plain text, reports this health name as SERVING.

    Raises:
        grpc.RpcError: nobody answers, or nobody who knows gRPC's health service and the name.
    """
    request = health_pb2.HealthCheckRequest(service=name)
    with grpc.insecure_channel(address, DIRECT) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)  # type: ignore[attr-defined]  # not in its stubs
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def knows_health(address: str) -> bool:
    """Say whether a server of ours answers at an address in plain text, whatever it says of its health."""
    try:
        is_serving(address, LIVENESS)
    except grpc.RpcError:
        return False
    return True


def main() -> int:
    """Ask once."""
    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if settings.health_listen is None and settings.tls_cert_file is not None:
        sys.stderr.write(
            "the server has TLS, and this probe speaks plain text: set POINTILLIST_HEALTH_LISTEN for both, such as"
            " 127.0.0.1:50052, and health alone is served there\n"
        )
        return 1
    address = str(called_at(settings.health_listen or settings.grpc_listen))
    try:
        return 0 if is_serving(address, sys.argv[1] if len(sys.argv) > 1 else LIVENESS) else 1
    except grpc.RpcError as error:
        words = error.details() if isinstance(error, grpc.Call) else error
        sys.stderr.write(f"{address}: {words}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
