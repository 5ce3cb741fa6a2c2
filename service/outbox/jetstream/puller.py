"""Pulling messages from a JetStream consumer: what there is now, or one message as soon as there is one.

The client's own `fetch` waits for its timeout where there is less than was asked for; this one ends when JetStream says
that there is no more.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import orjson

from service.outbox.jetstream.connection import API, Connection, Received

PULL_TIMEOUT = 2.0  # seconds until a pull whose end is not heard of is given up
PULL_EXPIRY = 30  # seconds for which JetStream keeps a pull that waits
STATUS: Final = "Status"
NO_MORE = frozenset({"404", "408"})  # statuses that end a pull because nothing is left, be it at once or after some


class Puller:
    """Pulls over one connection, one pull at a time."""

    def __init__(self, connection: Connection, heard: Callable[[Received], None]) -> None:
        """Create it; `listen` subscribes to its answers.

        Args:
            connection: to NATS.
            heard: called with each message that comes, whenever it does.
        """
        self._connection = connection
        self._heard = heard
        self._inbox = ""
        self._number = 0
        self._left = 0
        self._mark = ""
        self._ended: asyncio.Future[bool] | None = None
        self._pulling = asyncio.Lock()

    async def start(self, inbox: str) -> None:
        """Hear messages on subjects below an inbox of ours."""
        self._inbox = inbox
        await self._connection.subscribe(f"{inbox}.*", self._hear)

    async def pull(self, stream: str, consumer: str, batch: int) -> bool:
        """Have up to `batch` messages delivered that are there now; returns once they were heard.

        Returns whether they surely were all of them, up to `batch`: what breaks off in between may leave some out.

        Raises:
            OutboxUnavailableError: there is no connection.
        """
        async with self._pulling:
            self._number += 1
            self._left = batch
            self._mark = f".{consumer}."  # in the subject of each one's acknowledgement
            ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._ended = ended
            try:
                async with asyncio.timeout(PULL_TIMEOUT):
                    await self._connection.publish(
                        f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
                        orjson.dumps({"batch": batch, "no_wait": True}),
                        reply=f"{self._inbox}.{self._number}",
                    )
                    return await ended
            except TimeoutError:
                return False  # what comes later is heard all the same
            finally:
                self._ended = None

    def lose(self) -> None:
        """Wait no more: the connection on which messages would come is gone."""
        self._end(is_whole=False)

    def _end(self, *, is_whole: bool) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(is_whole)

    async def _hear(self, received: Received) -> None:
        status = (received.headers or {}).get(STATUS)
        if status is not None:
            if received.subject == f"{self._inbox}.{self._number}":
                self._end(is_whole=status in NO_MORE)
            return
        self._heard(received)
        if self._mark not in received.reply:
            return  # it is late: of a pull from another consumer, that was given up
        self._left -= 1
        if self._left == 0:
            self._end(is_whole=True)


class WaitingPull:
    """Has JetStream deliver one message as soon as there is one, so that nobody has to look again and again."""

    def __init__(self, connection: Connection, delivered: Callable[[Received], None]) -> None:
        """Create it; `listen` subscribes to its answers.

        Args:
            connection: to NATS.
            delivered: called with the message, which is leased to us.
        """
        self._connection = connection
        self._delivered = delivered
        self._inbox = ""
        self._number = 0
        self.is_pending = False
        """JetStream holds the pull and has not answered it yet."""

    async def listen(self, inbox: str) -> None:
        """Receive its answers on subjects below an inbox of ours."""
        self._inbox = inbox
        await self._connection.subscribe(f"{inbox}.*", self._hear)

    async def start(self, stream: str, consumer: str) -> None:
        """Send the pull to JetStream, unless one is pending.

        Raises:
            OutboxUnavailableError: there is no connection.
        """
        if self.is_pending:
            return
        self._number += 1
        self.is_pending = True
        try:
            await self._connection.publish(
                f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
                orjson.dumps({"batch": 1, "expires": PULL_EXPIRY * 1_000_000_000}),
                reply=f"{self._inbox}.{self._number}",
            )
        except BaseException:
            self.is_pending = False
            raise

    async def stop(self) -> None:
        """Withdraw the pull from JetStream, so that nothing is delivered to nobody.

        Raises:
            OutboxUnavailableError: there is no connection.
        """
        await self._connection.unsubscribe(f"{self._inbox}.*")

    def lose(self) -> None:
        """Forget the pull; it ended with the connection."""
        self.is_pending = False

    async def _hear(self, received: Received) -> None:
        if STATUS not in (received.headers or {}):
            self.is_pending = False
            self._delivered(received)
        elif received.subject == f"{self._inbox}.{self._number}":
            self.is_pending = False
