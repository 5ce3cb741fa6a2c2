"""Pointillist's streaming API: one record per POST, and its answer.

The wire, as far as it is publicly known: `POST https://stream.pointillist.com/event`, one JSON event a request, the
token in the header `apiToken`. Codes and bodies of answers are not documented, so usual HTTP semantics are assumed.

    Pointillist (Protocol)
    ├── PyreqwestPointillist    pyreqwest_client.py
    └── Httpx2Pointillist       httpx2_client.py

Both speak HTTP/1.1, follow no redirect (a POST would become a GET, and the token would travel), keep no cookies,
decode no body and try nothing twice: the meaning of an answer is decided in one place, `retry.py`.
"""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from service.errors import SettingsError
from service.pointillist.answer import Answer
from service.pointillist.http import idempotency_key
from service.pointillist.proxy import proxy_for

__all__ = ["HttpClient", "Pointillist", "connect", "idempotency_key"]

HttpClient = Literal["pyreqwest", "httpx2"]


class Pointillist(Protocol):
    """Somewhere to POST records to."""

    async def post(self, body: bytes, message_id: str) -> Answer:
        """POST one record and return the answer; raises nothing but CancelledError.

        A complete 2xx header is a success, whatever becomes of its body. A POST that is cancelled may still arrive: it
        is given up, not called back.

        Args:
            body: the record's JSON.
            message_id: the event's, sent as Idempotency-Key, so that a repeat can be recognised.
        """

    async def close(self) -> None:
        """Close every connection."""


def connect(
    *,
    client: HttpClient,
    url: str,
    token: Callable[[], str],
    timeout: float,
    max_connections: int,
    ca_file: Path | None,
    proxy: str | None,
) -> Pointillist:
    """Make the client that the settings ask for; nothing is sent yet.

    Args:
        client: which HTTP library.
        url: where records are POSTed.
        token: gives the API token; called for each POST, so that a new token takes effect at once.
        timeout: seconds from the start of a POST to its answer's complete header, connecting included.
        max_connections: how many idle connections are kept: as many as there are POSTs at a time, which the caller
            bounds. Nothing ever waits for a connection here.
        ca_file: certificates in PEM that are trusted besides the system's.
        proxy: a proxy's address; None to follow HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY. Loopback is reached
            without one.

    Raises:
        SettingsError: the address, the file or the proxy cannot be used.
    """
    if not _is_address(url, ("http", "https")):
        raise SettingsError("POINTILLIST_API_URL: not an HTTP address; one looks like https://host/event")
    if proxy is not None and not _is_address(proxy, ("http", "https")):
        # It is not quoted: a proxy's address often holds a password.
        raise SettingsError("POINTILLIST_API_PROXY: not a proxy's address; one looks like http://host:3128")
    if ca_file is not None:
        _check_certificates(ca_file)
    proxy = proxy_for(url, proxy)
    # Each library is imported only where it is used: httpx2 takes 0.15 s and some 20 MB.
    if client == "pyreqwest":
        from service.pointillist.pyreqwest_client import PyreqwestPointillist  # noqa: PLC0415  see above

        return PyreqwestPointillist(
            url=url, token=token, timeout=timeout, max_connections=max_connections, ca_file=ca_file, proxy=proxy
        )
    from service.pointillist.httpx2_client import Httpx2Pointillist  # noqa: PLC0415  see above

    return Httpx2Pointillist(
        url=url, token=token, timeout=timeout, max_connections=max_connections, ca_file=ca_file, proxy=proxy
    )


def _is_address(address: str, schemes: tuple[str, ...]) -> bool:
    """Say whether an address can be connected to: one of the schemes, a host, a port that exists, and no blanks."""
    try:
        parts = urlsplit(address)
        port = parts.port  # reading it checks it
    except ValueError:
        return False
    return parts.scheme in schemes and bool(parts.hostname) and port != 0 and not any(map(str.isspace, address))


def _check_certificates(ca_file: Path) -> None:
    """Refuse a file without certificates: pyreqwest would take it, and then trust nothing that it was to trust."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
    except OSError as error:
        raise SettingsError(
            f"POINTILLIST_API_CA_FILE: {ca_file}: {error.strerror or error}; expected certificates in PEM"
        ) from error
