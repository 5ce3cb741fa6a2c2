"""An event loop in a thread: servers that many tests share, for tests that run without a loop."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from service.sandbox.server import Sandbox
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, running_server
from tests.support.waiting import until_blocking

Result = TypeVar("Result")


class Background:
    """Runs coroutines in a thread of its own, and keeps context managers open until it ends."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._stack = AsyncExitStack()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Wait for a coroutine and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def enter(self, manager: AbstractAsyncContextManager[Result]) -> Result:
        """Enter a context manager, which is left when all ends."""
        return self.run(self._stack.enter_async_context(manager))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Leave what was entered, and end the thread."""
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def background() -> Iterator[Background]:
    """Run a loop in a thread."""
    running = Background()
    running.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass(frozen=True)
class Served:
    """A `serve` process and its sandbox, shared by the tests of a module."""

    sandbox: Sandbox
    server: ServerProcess
    background: Background

    @property
    def address(self) -> str:
        """Of its gRPC server."""
        return self.server.address

    def taken(self, event: str) -> set[str]:
        """The message ids of the records of this event type that the sandbox has."""
        return {record.message_id for record in list(self.sandbox.records) if record.record["eventType"] == event}

    def until_taken(self, event: str, count: int) -> set[str]:
        """Wait until the sandbox has that many records of an event type; return their message ids."""
        until_blocking(lambda: len(self.taken(event)) >= count)
        return self.taken(event)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Run a server process and its sandbox beside tests that have no event loop."""
    with background() as loop:
        sandbox = loop.enter(running_sandbox())
        server = loop.enter(running_server(sandbox, folder))
        yield Served(sandbox, server, loop)
