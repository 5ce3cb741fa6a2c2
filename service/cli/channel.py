"""Opening a channel to a server, in plain text or with TLS, and telling whose word a failed call is."""

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from service.cli.client import Target


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


def error_details(error: grpc.Call | grpc.aio.AioRpcError) -> Iterator[any_pb2.Any]:
    """Give the details of a failed call's status; none where it has none that can be read."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                yield from status_pb2.Status.FromString(value).details
            except DecodeError:
                continue


def is_from_server(error: grpc.Call | grpc.aio.AioRpcError) -> bool:
    """Say whether the server made a failed call's status, which it never does without ErrorInfo.

    One without it is the gRPC library's own: the server was not reached, or the connection broke.
    """
    return any(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in error_details(error))


def no_server(target: Target) -> str:
    """Return the error for a server that cannot be reached, with a remedy."""
    if target.certificates is None:
        return (
            f"{target.address}: no server can be reached there in plain text; start one with"
            " `pointillist-destination serve`, name another with --target HOST:PORT, or give --ca-file where it has TLS"
        )
    return (
        f"{target.address}: no server can be reached there with TLS, which --ca-file asks for; it must have a"
        " certificate for that host that those of --ca-file vouch for; one in plain text goes without --ca-file"
    )
