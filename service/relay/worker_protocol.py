"""The protocol of the server and its relay workers over a socket pair: frames of pickled tuples.

A frame is four bytes of length, most significant first, and as many bytes of pickle. Both ends are one program that
the same user started; nobody else can write to the pair.
"""

import asyncio
import pickle
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from service.pointillist.answer import Answer
from service.pointillist.client import HttpClient

LENGTH_BYTES = 4


class SetUp(NamedTuple):
    """The first frame to a worker: its settings."""

    client: HttpClient
    url: str
    timeout: float
    """Seconds."""
    max_connections: int
    ca_file: Path | None
    proxy: str | None
    log_level: str
    log_format: str | None


Parcel: TypeAlias = tuple[int, str, bytes, int]
"""An event on its way to a worker: a number of its own, and a Stored's message_id, payload and accepted_at."""

Order: TypeAlias = (
    tuple[Literal["mapping"], str] | tuple[Literal["token"], str] | tuple[Literal["events"], list[Parcel]]
)
"""A frame to a worker after the first: the text of a mapping file, an API token, or events to be sent with them."""

Outcome: TypeAlias = tuple[int, int | Answer | str | None]
"""The outcome of an event: its number; the status of a 2xx, any other answer, UNREADABLE for bytes that do not parse,
or None for an error of this service.

A frame to the server is a list of these; the first, once a worker is able to work, is an empty one.
"""


def frame(message: object) -> bytes:
    """Write one frame."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """Read one frame.

    Raises:
        EOFError: the other end is gone.
    """
    try:
        length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
        return pickle.loads(await reader.readexactly(length))  # noqa: S301  see the module's docstring
    except (asyncio.IncompleteReadError, OSError) as error:
        raise EOFError from error
