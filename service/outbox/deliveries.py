"""Callers that wait for the delivery of an event: wait_for_delivery."""

import asyncio
import contextlib
from collections.abc import Iterator

from service.outbox.base import Refusal


class DeliveryWaiters:
    """Passes the outcome of a delivery to the callers that wait for it.

    Holds one future per waiting caller and nothing for any other event.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[Refusal | None]]] = {}

    @contextlib.contextmanager
    def expect(self, message_id: str) -> Iterator["asyncio.Future[Refusal | None]"]:
        """Yield a future that becomes None when the event is delivered, and its Refusal when it is given up."""
        future: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(message_id, set())
        waiting.add(future)
        try:
            yield future
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(message_id, None)

    def settled(self, message_id: str, refusal: Refusal | None) -> None:
        """Notify the callers that wait for an event that it was delivered (None) or given up."""
        for future in self._waiting.get(message_id, ()) if self._waiting else ():
            if not future.done():
                future.set_result(refusal)
