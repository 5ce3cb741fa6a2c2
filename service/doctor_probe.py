"""The one question that `doctor --probe` asks Pointillist: does it take our token?"""

import asyncio

from service.answer import Answer
from service.doctor import Finding, Grade
from service.pointillist import connect
from service.settings import Settings

BODY = b"{}"  # a record of no event: whoever reads it has nothing to keep, and refuses it
MESSAGE_ID = "pointillist-destination-doctor"


def ask(settings: Settings) -> Finding:
    """POST a record that is none, and judge by the answer."""
    return _judge(asyncio.run(_post(settings)))


async def _post(settings: Settings) -> Answer:
    client = connect(
        client=settings.http_client,
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
    if answer.status in {401, 402, 403, 407}:
        return Finding("probe", Grade.ERROR, text, "it does not take the token: check POINTILLIST_API_TOKEN")
    if answer.status in {404, 405, 410, 421, 426, 501} or 300 <= answer.status <= 399:
        return Finding("probe", Grade.ERROR, text, "the address is wrong: check POINTILLIST_API_URL")
    if answer.status == 429 or answer.status >= 500:
        return Finding("probe", Grade.WARNING, text, "it is there, but not well; the relay tries again by itself")
    return Finding("probe", Grade.OK, f"{text}: it is there, and takes the token")
