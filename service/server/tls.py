"""gRPC's credentials of a port with TLS.

New connections get the certificates in force; those that are open stay as they are.
"""

import grpc

from service.config.watched_file import WatchedFile
from service.intake.certificates import Certificates


def server_credentials(files: WatchedFile[Certificates]) -> grpc.ServerCredentials:
    """Return credentials that follow certificate files; a caller without a certificate is refused if they name one."""
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
