"""The setup with which Pointillist took an event, kept in the outbox.

A restart is no first day: where Pointillist took an event with the same address, token and mapping, refusals are
statements about events. With another one, they may be statements about the setup.
"""

import asyncio
from collections.abc import Callable
from hashlib import blake2b

import structlog

from service.errors import OutboxError
from service.mapping.mapping import Mapping
from service.outbox.base import Memory

NAME = "passed_setup"

log = structlog.get_logger()


class PassedSetup:
    """Remembers the digest of a setup at its first 2xx.

    Args:
        memory: keeps the digest.
        url: of Pointillist.
        token: returns the API token in force.
        mapping: returns the mapping in force.
    """

    def __init__(self, memory: Memory, url: str, token: Callable[[], str], mapping: Callable[[], Mapping]) -> None:
        self._memory = memory
        self._url = url
        self._token = token
        self._mapping = mapping
        self._digest = self._current()
        self._writing: asyncio.Task[None] | None = None

    async def has_passed(self) -> bool:
        """Return True if Pointillist took an event with this setup in an earlier process."""
        return await self._memory.recall(NAME) == self._digest

    def has_changed(self) -> bool:
        """Return True if the setup is another one than at the last call, or at the start."""
        before, self._digest = self._digest, self._current()
        return self._digest != before

    def passed(self) -> None:
        """Note the first 2xx with this setup."""
        self._writing = asyncio.create_task(self._remember(self._digest))

    async def _remember(self, digest: str) -> None:
        try:
            await self._memory.remember(NAME, digest)
        except OutboxError as error:  # the next start is a first day then
            log.debug("cannot remember that Pointillist took an event", why=str(error))

    def _current(self) -> str:
        digest = blake2b(digest_size=16)
        for text in (self._url, self._token(), self._mapping().describe()):
            digest.update(len(text).to_bytes(8) + text.encode())
        return digest.hexdigest()
