"""Opening a channel to a server, in plain text or with TLS."""

from collections.abc import Sequence
from typing import Any

import grpc

from service.target import Target


def open_channel(target: Target) -> grpc.Channel:
    """A channel for calls that wait."""
    if target.certificates is None:
        return grpc.insecure_channel(target.address)
    return grpc.secure_channel(target.address, grpc.ssl_channel_credentials(target.certificates))


def open_aio_channel(target: Target, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel for the running event loop."""
    if target.certificates is None:
        return grpc.aio.insecure_channel(target.address, options=options)
    return grpc.aio.secure_channel(target.address, grpc.ssl_channel_credentials(target.certificates), options=options)
