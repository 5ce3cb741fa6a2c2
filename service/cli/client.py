"""The server that a command calls: its address, a channel to it, and the origin of a failed call's status."""

import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from service.config.address import Listen, called_at
from service.config.settings import load_settings
from service.config.token import legal_token
from service.errors import SettingsError, UnreadableFileError
from service.loopback import is_loopback
from service.probe import DIRECT

PROXY = "grpc_proxy"  # lower case, as gRPC reads no other


@dataclass(frozen=True, slots=True)
class Target:
    """The address of a server, and the credentials to call it."""

    address: str
    """HOST:PORT."""
    certificates: bytes | None = None
    """The authorities to trust, in PEM, for a server with TLS; None for plain text."""
    token: str | None = None
    """The caller's token; None for a server that asks for none. It is no part of a repr."""
    own: tuple[bytes, bytes] | None = None
    """Our key and certificate, in PEM, for a server that demands one of its callers."""

    def __repr__(self) -> str:
        return f"Target({self.address!r})"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Channel options: a proxy only if gRPC's own variable names one, and never on the way to loopback.

        gRPC would follow `https_proxy` and `http_proxy` too: proxies for web pages, which lead out of the network.
        """
        host = called_at(Listen.parse(self.address)).host
        return () if os.environ.get(PROXY) and not is_loopback(host) else DIRECT

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """GRPC's credentials of a channel; None for plain text."""
        if self.certificates is None:
            return None
        key, certificate = self.own or (None, None)
        return grpc.ssl_channel_credentials(self.certificates, key, certificate)


def find_target(
    given: str | None,
    ca_file: Path | None,
    token_file: Path | None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> Target:
    """The server that options name; without an address, the one that the settings have listen here.

    Raises:
        SettingsError: the address, a setting, the certificates, the key or the token cannot be used.
        UnreadableFileError: a file cannot be read.
    """
    certificates = None if ca_file is None else _certificates(ca_file)
    own = _own_certificate(ca_file, cert_file, key_file)
    token = None if token_file is None else _token(token_file)
    try:
        address = called_at(load_settings(os.environ).grpc_listen) if given is None else Listen.parse(given)
    except ValueError as error:
        raise SettingsError(f"--target: {error}") from error
    return Target(str(address), certificates, token, own)


def _own_certificate(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> tuple[bytes, bytes] | None:
    """Read and check our key and certificate: gRPC itself would only fail to reach the server."""
    if cert_file is None and key_file is None:
        return None
    if cert_file is None or key_file is None:
        raise SettingsError("--cert-file and --key-file go together: the certificate, and the key that it was made for")
    if ca_file is None:
        raise SettingsError("--cert-file goes with --ca-file: the authorities by which the server is known")
    key, certificate = _read(key_file), _read(cert_file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert_file, key_file, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        advice = "expected a certificate, with the intermediate ones, and its key without a passphrase, in PEM"
        raise SettingsError(f"--cert-file {cert_file}, --key-file {key_file}: {error}; {advice}") from error
    return key, certificate


def _certificates(path: Path) -> bytes:
    """Read and check certificates: gRPC itself would take any bytes, and then reach no server without saying why."""
    content = _read(path)
    try:
        # A bundle may have comments in any encoding; PEM itself is ASCII.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"--ca-file: {path} holds no certificate: {error}; expected certificates in PEM") from error
    return content


def _token(path: Path) -> str:
    try:
        return legal_token(_read(path).decode("latin-1"))  # any byte decodes; the check comes after
    except ValueError as error:
        raise SettingsError(f"--token-file: {path} {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"{path}: {error.strerror}") from error


def open_channel(target: Target) -> grpc.Channel:
    """A channel for calls that wait."""
    if (credentials := target.credentials) is None:
        return grpc.insecure_channel(target.address, target.options)
    return grpc.secure_channel(target.address, credentials, target.options)


def open_aio_channel(target: Target, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel for the running event loop."""
    options = (*target.options, *options)
    if (credentials := target.credentials) is None:
        return grpc.aio.insecure_channel(target.address, options=options)
    return grpc.aio.secure_channel(target.address, credentials, options=options)


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
        " certificate for that host that those of --ca-file vouch for; one that demands a certificate of its callers"
        " needs --cert-file and --key-file; one in plain text goes without --ca-file"
    )
