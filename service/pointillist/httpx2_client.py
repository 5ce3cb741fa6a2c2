"""Pointillist through httpx2, the portable client: Python throughout."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx2

from service.pointillist.answer import Answer, Failure, retry_after_seconds
from service.pointillist.http import (
    BODY_TIME,
    DRAINED,
    FAILURES,
    IDLE_TIME,
    KEPT,
    SUCCESS,
    USER_AGENT,
    Allowance,
    body_start,
    failed,
    idempotency_key,
    not_made,
)


class Httpx2Pointillist:
    """Pointillist through httpx2, by its transport: its client would keep cookies, and read where a redirect leads.

    Known limit: bytes that a server sends unasked after an answer's body are taken for its next answer, which they may
    be on a connection that is used again. pyreqwest drops such a connection.
    """

    def __init__(
        self,
        *,
        url: str,
        token: Callable[[], str],
        timeout: float,
        max_connections: int,
        ca_file: Path | None,
        proxy: str | None,
    ) -> None:
        self._url = httpx2.URL(url)
        self._token = token
        self._body_time = Allowance(BODY_TIME)
        self._timeout = timeout
        # Cut off from outside during a TLS handshake, httpx2 leaves the socket open; cut off by itself it does not.
        # TCP and TLS get half the time each, so that it always comes first.
        self._extensions = {"timeout": {"connect": timeout / 2}}
        self._headers = [(b"Content-Type", b"application/json"), (b"User-Agent", USER_AGENT.encode())]
        context = httpx2.create_ssl_context()
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
        self._transport = httpx2.AsyncHTTPTransport(
            verify=context,
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=max_connections, keepalive_expiry=IDLE_TIME
            ),
            proxy=proxy,
        )

    async def post(self, body: bytes, message_id: str) -> Answer:
        """POST one record; see `Pointillist.post`."""
        token = ""
        try:
            token = self._token()
            own = [(b"apiToken", token.encode()), (b"Idempotency-Key", idempotency_key(message_id).encode())]
            request = httpx2.Request(
                "POST", self._url, headers=self._headers + own, content=body, extensions=self._extensions
            )
        except Exception as error:  # noqa: BLE001  a POST never raises; the token's source can fail in any way
            return not_made(error)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._transport.handle_async_request(request)
        except httpx2.LocalProtocolError as error:  # its text quotes the header it does not like: perhaps the token
            return not_made(error)
        except Exception as error:  # noqa: BLE001  a POST never raises
            return _httpx2_failure(error, token)
        status = response.status_code
        start = await self._read(response, DRAINED if response.is_success else KEPT)
        if response.is_success:
            return SUCCESS[status - 200]
        retry_after = retry_after_seconds(response.headers.get("retry-after"), response.headers.get("date"))
        return Answer(status, None, retry_after, body_start(start, token))

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def _read(self, response: httpx2.Response, most: int) -> bytes:
        """Read a body, up to `most` bytes; the part before it broke or grew slow is returned too."""
        start = bytearray()
        try:
            with self._body_time.begin():
                async with aclosing(response.aiter_raw()) as chunks:
                    async for chunk in chunks:
                        start += chunk
                        if len(start) >= most:
                            break
        except Exception:  # noqa: BLE001, S110  the status is known: whatever befalls the body changes nothing
            pass
        finally:
            await response.aclose()
        return bytes(start[:most])


def _httpx2_failure(error: Exception, token: str) -> Answer:
    """Say why httpx2 got no header, by the classes of the error and its causes."""
    chain = list(_causes(error))
    detail = str(chain[-1]) or type(chain[-1]).__name__
    codes = [cause.errno for cause in chain if isinstance(cause, OSError) and cause.errno in FAILURES]
    if any(isinstance(cause, (TimeoutError, httpx2.TimeoutException)) for cause in chain):
        return Answer(failure=Failure.TIMEOUT, detail="no complete header within the request timeout")
    if isinstance(error, httpx2.ProxyError) and str(error).startswith("407"):
        return Answer(status=407)  # the proxy's answer; for an address without TLS it comes as a status
    if any(isinstance(cause, socket.gaierror) for cause in chain):
        failure = Failure.DNS
    elif codes:
        failure = FAILURES[codes[0]]
    elif any(isinstance(cause, ssl.SSLError) for cause in chain):
        failure = Failure.TLS
    elif isinstance(error, httpx2.RemoteProtocolError) and "disconnected" in str(error):
        failure = Failure.TRUNCATED
    elif isinstance(error, httpx2.NetworkError) and not isinstance(error, httpx2.ConnectError):
        failure = Failure.RESET
    else:
        failure = Failure.OTHER
    return failed(failure, detail, token)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Walk from an error to its causes, through groups too."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from _causes(part)
        error = error.__cause__ or error.__context__
