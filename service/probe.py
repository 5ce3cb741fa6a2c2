"""Asks a running server for its health: `python -m service.probe [NAME]`, for the image's HEALTHCHECK.

NAME is one of the health names, `liveness` by default. Exit code 0 means SERVING.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.settings import Listen, load_settings

TIMEOUT = 3.0  # seconds
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where to call a server that listens everywhere


def main() -> int:
    """Ask once."""
    settings = load_settings(os.environ)
    listen = settings.health_listen or settings.grpc_listen
    target = str(Listen(ANY.get(listen.host, listen.host), listen.port))
    request = health_pb2.HealthCheckRequest(service=sys.argv[1] if len(sys.argv) > 1 else "liveness")
    with grpc.insecure_channel(target) as channel:
        try:
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT).status  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            sys.stderr.write(f"{target}: {error}\n")
            return 1
    return 0 if status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
