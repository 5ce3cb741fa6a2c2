"""The children's side of the conversation: commands come as lines of JSON, and each is answered with one."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

MAX_LINE = 16 * 1024 * 1024  # bytes of one command


async def commands() -> asyncio.StreamReader:
    """Standard input, as something to be read from the event loop."""
    reader = asyncio.StreamReader(MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def serve_commands(handle: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Answer commands one after another until standard input ends."""
    reader = await commands()
    while line := await reader.readline():
        answer = await handle(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def until_end_of_input() -> None:
    """Return when standard input ends: whoever started this process is done with it, or gone."""
    reader = await commands()
    while await reader.read(MAX_LINE):
        pass
