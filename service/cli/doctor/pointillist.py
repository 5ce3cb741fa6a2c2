"""Pointillist's address, and the question that `doctor --probe` asks it: does it accept the token?"""

import asyncio
import socket
from urllib.parse import urlsplit

from service.cli.doctor.finding import Finding, Grade, count
from service.config.settings import Settings
from service.pointillist.answer import Answer
from service.pointillist.client import connect
from service.pointillist.proxy import proxy_for
from service.relay.retry import Verdict, decide

BODY = b"{}"  # a record of no event: whoever reads it has nothing to keep, and refuses it
NO_TOKEN = frozenset({401, 402, 403})
"""Which answers of a wrong set-up speak of the token or the account; 407 is a proxy's, the others are the address's."""
PROXY = 407
NAME_TIMEOUT = 5.0  # seconds
MESSAGE_ID = "pointillist-destination-doctor"


def address_finding(settings: Settings) -> Finding:
    """Resolve the address of Pointillist, and connect to it."""
    parts = urlsplit(settings.api_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if proxy_for(settings.api_url, settings.api_proxy) is not None:
        return Finding("address", Grade.OK, f"{host} is reached through a proxy; only --probe can check more")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:  # the latter for an impossible host name, such as a..b
        reason = error.strerror if isinstance(error, OSError) else error
        advice = "check POINTILLIST_API_URL and this machine's DNS; until then everything waits in the outbox"
        return Finding("address", Grade.ERROR, f"{host} cannot be resolved: {reason}", advice)
    try:
        socket.create_connection((host, port), NAME_TIMEOUT).close()
    except OSError as error:
        advice = "check POINTILLIST_API_URL, the firewall and the proxy; until then everything waits in the outbox"
        return Finding("address", Grade.ERROR, f"{host}:{port} does not answer: {error}", advice)
    return Finding("address", Grade.OK, f"{host}:{port} answers ({count(len(addresses), 'address', 'addresses')})")


def ask(settings: Settings) -> Finding:
    """POST a record that is none, and judge by the answer.

    The portable client asks, whichever one sends: pyreqwest's native thread lives on after its client is closed, and a
    process that ends in the same moment, as this one does, may be aborted by it.
    """
    return _judge(asyncio.run(_post(settings)))


async def _post(settings: Settings) -> Answer:
    client = connect(
        client="httpx2",
        url=settings.api_url,
        token=settings.require_token().current,
        timeout=settings.request_timeout,
        max_connections=1,
        ca_file=settings.api_ca_file,
        proxy=settings.api_proxy,
    )
    try:
        return await client.post(BODY, MESSAGE_ID)
    finally:
        await client.close()


def _judge(answer: Answer) -> Finding:
    if answer.status is None:
        text = f"no answer: {answer.failure}: {answer.detail}"
        return Finding("probe", Grade.ERROR, text, "check POINTILLIST_API_URL, the network, TLS and the proxy")
    text = f"Pointillist answers {answer.status} to an empty record"
    verdict = decide(answer, 1, max_delay=0.0, random=lambda: 0.0).verdict
    if answer.status == PROXY:
        return Finding("probe", Grade.ERROR, text, "a proxy wants to know who asks: check POINTILLIST_API_PROXY")
    if answer.status in NO_TOKEN:
        return Finding("probe", Grade.ERROR, text, "it does not take the token: check POINTILLIST_API_TOKEN")
    if verdict is Verdict.SETUP:
        return Finding("probe", Grade.ERROR, text, "the address is wrong: check POINTILLIST_API_URL")
    if verdict is Verdict.NAK:
        return Finding("probe", Grade.WARNING, text, "it is there, but not well; the relay tries again by itself")
    return Finding("probe", Grade.OK, f"{text}: it is there, and takes the token")
