"""Certificate files of a listener: a certificate, its key, and the authorities that sign callers' certificates."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from service.config.watched_file import WatchedFile
from service.errors import SettingsError

CERTIFICATE = "POINTILLIST_TLS_CERT_FILE"
KEY = "POINTILLIST_TLS_KEY_FILE"
CLIENT_AUTHORITY = "POINTILLIST_TLS_CLIENT_CA_FILE"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files that belong together, checked."""

    certificate: bytes
    """The server's certificate, and those between it and its authority."""
    key: bytes = field(repr=False)
    """Its private key, not encrypted."""
    client_authority: bytes | None
    """The authorities that sign callers' certificates; None where callers need none."""


def watch_certificates(certificate: Path, key: Path, client_authority: Path | None) -> WatchedFile[Certificates]:
    """Read certificate files, and again whenever one changes, as the renewal of a certificate rewrites them.

    Raises:
        SettingsError: they cannot be used.
    """
    paths = [path for path in (certificate, key, client_authority) if path is not None]
    return WatchedFile(paths, lambda: _read_certificates(certificate, key, client_authority))


def _read_certificates(certificate: Path, key: Path, client_authority: Path | None) -> Certificates:
    """Read and check the files: gRPC itself would take any bytes, and then fail every handshake without a word."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found = Certificates(
        _read(CERTIFICATE, certificate),
        _read(KEY, key),
        None if client_authority is None else _read(CLIENT_AUTHORITY, client_authority),
    )
    try:
        # An empty passphrase, or OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(
            f"{CERTIFICATE}, {KEY}: {certificate} and {key} are not a certificate and its key: {error};"
            " expected PEM files that belong together, and a key without a passphrase"
        ) from None
    if client_authority is not None:
        try:
            context.load_verify_locations(client_authority)
        except ssl.SSLError as error:
            raise SettingsError(
                f"{CLIENT_AUTHORITY}: {client_authority} holds no certificate: {error}; expected a PEM file"
                " with those of the authorities that sign callers' certificates"
            ) from None
    return found


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from None
