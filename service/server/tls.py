"""TLS for callers: a certificate, its key, and the authority that callers' own certificates come from.

The files are read again when they change, as whoever renews a certificate rewrites them. New connections get the new
certificate; those that are open stay as they are.
"""

import ssl
from pathlib import Path

import grpc

from service.config.watched_file import signature
from service.errors import SettingsError

CERTIFICATE = "POINTILLIST_TLS_CERT_FILE"
KEY = "POINTILLIST_TLS_KEY_FILE"
CLIENT_AUTHORITY = "POINTILLIST_TLS_CLIENT_CA_FILE"


class TlsFiles:
    """The certificates in force; bad new ones leave the old ones in force."""

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None) -> None:
        """Read the files for the first time.

        Args:
            certificate: PEM: the server's certificate, and those between it and its authority.
            key: PEM: its private key, not encrypted.
            client_authority: PEM: who signs callers' certificates; with it, a caller without one is not let in.

        Raises:
            SettingsError: they cannot be used.
        """
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._seen = self._signature()
        self.problem: str | None = None
        """Why the files were not taken up at the last reload; None where they were."""
        self._configuration = self._read()
        self._in_use = self._configuration

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._renewed,  # type: ignore[arg-type]  # None means that nothing is new; the stubs do not know it
            require_client_authentication=self._client_authority is not None,
        )

    def has_changed(self) -> bool:
        """Whether one of the files is another than the last that was read, by its time, size and inode."""
        return self._signature() != self._seen

    def reload(self) -> bool:
        """Read the files again; returns whether they were taken up, else `problem` says why not."""
        self._seen = self._signature()
        try:
            self._configuration = self._read()
        except SettingsError as error:
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Give gRPC what is new since it last asked; a thread of gRPC's asks before each handshake."""
        configuration = self._configuration
        if configuration is self._in_use:
            return None
        self._in_use = configuration
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Read and check the files: gRPC itself would take any bytes, and then fail every handshake without a word."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = _read(CERTIFICATE, self._certificate), _read(KEY, self._key)
        try:
            # An empty passphrase, or OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"{CERTIFICATE}, {KEY}: {self._certificate} and {self._key} are not a certificate and its key: {error};"
                " expected PEM files that belong together, and a key without a passphrase"
            ) from None
        authority = None
        if self._client_authority is not None:
            authority = _read(CLIENT_AUTHORITY, self._client_authority)
            try:
                context.load_verify_locations(self._client_authority)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"{CLIENT_AUTHORITY}: {self._client_authority} holds no certificate: {error}; expected a PEM file"
                    " with those of the authorities that sign callers' certificates"
                ) from None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def _signature(self) -> tuple[tuple[int, ...], ...]:
        paths = [path for path in (self._certificate, self._key, self._client_authority) if path is not None]
        return tuple(map(signature, paths))


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from None
