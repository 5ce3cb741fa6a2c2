"""Pulls messages from a JetStream consumer: those available now, or one message as soon as there is one.

If fewer messages are available than requested, the client's own `fetch` waits until its timeout; this one ends when
JetStream reports that there are no more.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import orjson

from service.outbox.jetstream.connection import API, Connection, Received

PULL_TIMEOUT = 2.0  # seconds after which a pull without an end is abandoned
PULL_EXPIRY = 30  # seconds for which JetStream keeps a waiting pull
STATUS: Final = "Status"
NO_MORE = frozenset({"404", "408"})  # statuses that end a pull because no message is left


class Puller:
    """Pulls over one connection, one pull at a time."""

    def __init__(self, connection: Connection, received: Callable[[Received], None]) -> None:
        """Create it; `start` subscribes to its responses.

        Args:
            connection: to NATS.
            received: called with each message, even one that comes late.
        """
        self._connection = connection
        self._received = received
        self._inbox = ""
        self._number = 0
        self._left = 0
        self._mark = ""
        self._ended: asyncio.Future[bool] | None = None
        self._pulling = asyncio.Lock()

    async def start(self, inbox: str) -> None:
        """Subscribe to the subjects below an inbox of this process."""
        self._inbox = inbox
        await self._connection.subscribe(f"{inbox}.*", self._receive)

    async def pull(self, stream: str, consumer: str, batch: int) -> bool:
        """Pull up to `batch` messages that are available now; return once they were received.

        Returns True if these are certainly all of them, up to `batch`; False if the pull broke off.

        Raises:
            OutboxUnavailableError: not connected.
        """
        async with self._pulling:
            self._number += 1
            self._left = batch
            self._mark = f".{consumer}."  # in the reply subject of each message
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
                return False  # messages that come later are received all the same
            finally:
                self._ended = None

    def connection_lost(self) -> None:
        """End the pull: the connection on which its messages would come is gone."""
        self._end(is_whole=False)

    def _end(self, *, is_whole: bool) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(is_whole)

    async def _receive(self, received: Received) -> None:
        status = (received.headers or {}).get(STATUS)
        if status is not None:
            if received.subject == f"{self._inbox}.{self._number}":
                self._end(is_whole=status in NO_MORE)
            return
        self._received(received)
        if self._mark not in received.reply:
            return  # a late message of an abandoned pull from another consumer
        self._left -= 1
        if self._left == 0:
            self._end(is_whole=True)


class WaitingPull:
    """A pull that waits at JetStream and delivers one message as soon as there is one, so that nothing has to poll."""

    def __init__(self, connection: Connection, delivered: Callable[[Received], None]) -> None:
        """Create it; `listen` subscribes to its responses.

        Args:
            connection: to NATS.
            delivered: called with the message, which is then leased to this process.
        """
        self._connection = connection
        self._delivered = delivered
        self._inbox = ""
        self._number = 0
        self.is_pending = False
        """True while JetStream holds the pull and has not answered it."""

    async def listen(self, inbox: str) -> None:
        """Subscribe to the subjects below an inbox of this process."""
        self._inbox = inbox
        await self._connection.subscribe(f"{inbox}.*", self._receive)

    async def start(self, stream: str, consumer: str) -> None:
        """Send the pull to JetStream, unless one is pending.

        Raises:
            OutboxUnavailableError: not connected.
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
        """Withdraw the pull from JetStream, so that no message is leased to a process that ends.

        Raises:
            OutboxUnavailableError: not connected.
        """
        await self._connection.unsubscribe(f"{self._inbox}.*")

    def connection_lost(self) -> None:
        """Forget the pull; it ended with the connection."""
        self.is_pending = False

    async def _receive(self, received: Received) -> None:
        if STATUS not in (received.headers or {}):
            self.is_pending = False
            self._delivered(received)
        elif received.subject == f"{self._inbox}.{self._number}":
            self.is_pending = False
