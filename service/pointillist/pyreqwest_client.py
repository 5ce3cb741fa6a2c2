"""Pointillist through pyreqwest, the default: Rust's reqwest."""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import DetailedPyreqwestError, RequestTimeoutError
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

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

TLS_TEXTS = (
    "certificate",
    "corrupt message",
    "fatal alert",
    "peer is incompatible",
    "peer misbehaved",
    "tls handshake",
)
"""Texts of rustls's errors, which have no classes of their own."""


class PyreqwestPointillist:
    """Pointillist through pyreqwest.

    Requests are streamed with a read buffer of 0 bytes: pyreqwest then answers as soon as the header is there. With
    any other it reads the body first, and a body that breaks takes the status with it. Leaving the request's context
    is left out where the body was read to its end: there is nothing to close then, and it costs microseconds.
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
        self._url = url
        self._token = token
        self._body_time = Allowance(BODY_TIME)
        builder = (
            ClientBuilder()
            .http1_only()
            .follow_redirects(enable=False)
            .gzip(enable=False)
            .brotli(enable=False)
            .zstd(enable=False)
            .deflate(enable=False)
            .timeout(timedelta(seconds=timeout))
            .pool_idle_timeout(timedelta(seconds=IDLE_TIME))
            .pool_max_idle_per_host(max_connections)
            .user_agent(USER_AGENT)
            .default_headers({"Content-Type": "application/json"})
        )
        # Without `no_proxy` it would look for a proxy in the environment by itself.
        builder = builder.no_proxy() if proxy is None else builder.proxy(ProxyBuilder.all(proxy))
        if ca_file is not None:
            builder = builder.add_root_certificate_pem(ca_file.read_bytes())
        self._client: Client = builder.build()

    async def post(self, body: bytes, message_id: str) -> Answer:
        """POST one record; see `Pointillist.post`."""
        token = ""
        try:
            token = self._token()
            request = (
                self._client.post(self._url)
                .header("apiToken", token, is_sensitive=True)
                .header("Idempotency-Key", idempotency_key(message_id))
                .body_bytes(body)
                .streamed_read_buffer_limit(0)
                .build_streamed()
            )
        except Exception as error:  # noqa: BLE001  a POST never raises; the token's source can fail in any way
            return not_made(error)
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            response = await request.__aenter__()
        except Exception as error:  # noqa: BLE001  a POST never raises
            return _pyreqwest_failure(error, token)
        if task.cancelling() > cancelling:  # pyreqwest loses a cancellation that meets an answer
            await request.__aexit__(None, None, None)
            raise asyncio.CancelledError
        status = response.status
        if 200 <= status <= 299:
            await self._drain(request, response)
            return SUCCESS[status - 200]
        retry_after = retry_after_seconds(_header(response, "retry-after"), _header(response, "date"))
        return Answer(status, None, retry_after, body_start(await self._read(request, response), token))

    async def close(self) -> None:
        """Close every connection; pyreqwest's native thread lives on, as one for the whole process."""
        await self._client.close()

    async def _drain(self, request: StreamRequest, response: Response) -> None:
        """Read a body to its end, if the end is near, so that the connection can be used again; else drop it."""
        ended = False
        try:
            with self._body_time.begin():
                start = await response.body_reader.read(DRAINED)
                ended = start is None or len(start) < DRAINED
        except Exception:  # noqa: BLE001, S110  the header was complete: whatever befalls the body changes nothing
            pass
        finally:
            if not ended:
                await request.__aexit__(None, None, None)

    async def _read(self, request: StreamRequest, response: Response) -> bytes:
        """Read the start of a body; the part before it broke or grew slow is returned too."""
        start = bytearray()
        try:
            with self._body_time.begin():
                while len(start) < KEPT and (chunk := await response.body_reader.read_chunk()) is not None:
                    start += chunk
        except Exception:  # noqa: BLE001, S110  the status is known: whatever befalls the body changes nothing
            pass
        finally:
            await request.__aexit__(None, None, None)
        return bytes(start[:KEPT])


def _header(response: Response, name: str) -> str | None:
    """Give a header's value; None where it is not there or is not text."""
    try:
        return response.get_header(name)
    except ValueError:
        return None


def _pyreqwest_failure(error: Exception, token: str) -> Answer:
    """Say why pyreqwest got no header, by the error's class, else by its causes, which are texts."""
    causes = (error.details["causes"] or []) if isinstance(error, DetailedPyreqwestError) else []
    texts = [cause["message"] for cause in causes]
    chain = "\n".join(texts)
    detail = texts[-1] if len(texts) > 1 else type(error).__name__  # the first names the address, perhaps with a secret
    code = re.search(r"\(os error (\d+)\)", chain)
    if isinstance(error, RequestTimeoutError):
        failure = Failure.TIMEOUT
    elif "proxy authorization required" in chain:
        return Answer(status=407)  # the proxy's answer; for an address without TLS it comes as a status
    elif "dns error" in chain:
        failure = Failure.DNS
    elif code is not None:
        failure = FAILURES.get(int(code[1]), Failure.OTHER)
    elif "message completed" in chain:
        failure = Failure.TRUNCATED
    elif any(text in chain for text in TLS_TEXTS):
        failure = Failure.TLS
    else:
        failure = Failure.OTHER
    return failed(failure, detail, token)
