"""A listener: a gRPC server on one address, which is made again whenever it ends by itself.

A HEADERS frame whose `:path` is not UTF-8 ends the loop of a grpc.aio server before any handler is asked, and nothing
in Python prevents that. The process goes on, so that only the listener can notice, and help.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable

import grpc
import structlog

from service.config.address import Listen
from service.config.watched_file import WatchedFile
from service.errors import SettingsError
from service.intake.certificates import Certificates
from service.server.grpc_server import Server, listen

MAX_ENDS = 10  # a minute, above which it is an error
MINUTE = 60.0  # seconds
REBIND_PAUSE = 0.02  # seconds between attempts to listen again, while the old server still closes its port
REPORTED_ATTEMPT = 50  # after about a second
FOREVER = 1e9  # seconds; with a time-out, cancelling the wait does not cancel the server's own future
STOP_MARGIN = 1.0  # seconds beyond the grace, after which a stop waits no more for peers that do not read

log = structlog.get_logger()


class Listener:
    """One gRPC server on one address.

    Args:
        name: `grpc` or `health`, in logs and metrics.
        make: makes a server with its handlers; called again for each one that ended.
        ended: called when a server has ended by itself.
    """

    def __init__(self, name: str, make: Callable[[], Server], ended: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._make = make
        self._ended = ended
        self._server = make()
        self._setting = ""
        self._address = Listen("", 0)
        self._tls: WatchedFile[Certificates] | None = None
        self._ends: deque[float] = deque(maxlen=MAX_ENDS + 1)
        self._closing: set[asyncio.Task[None]] = set()
        self._loop_of_server: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.is_listening = False
        """A server listens and takes calls."""

    def bind(self, setting: str, address: Listen, tls: WatchedFile[Certificates] | None = None) -> Listen:
        """Bind the address; returns it with the port that was really bound.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        self._setting, self._tls = setting, tls
        self._address = listen(self._server, setting, address, tls)
        return self._address

    async def start(self) -> None:
        """Take calls."""
        self._loop_of_server = await _start(self._server)
        self.is_listening = True

    async def run(self) -> None:
        """Replace each server that ends, until `stop`."""
        while True:
            why, is_told = await self._until_end()
            if self._is_stopping:
                return
            self.is_listening = False
            self._report(why)
            old = self._server
            closing = asyncio.create_task(_close(old, is_told=is_told))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await self._listen_again()

    async def stop(self, grace: float) -> None:
        """Take no further call, and end those in progress after `grace` seconds.

        A peer that does not read its socket delays that by a second at most. A second call does nothing.
        """
        if self._is_stopping:
            return
        self._is_stopping, self.is_listening = True, False
        stopping = asyncio.ensure_future(self._server.stop(grace))
        await asyncio.wait({stopping}, timeout=grace + STOP_MARGIN)
        if not stopping.done():
            log.warning("a listener was left behind: a peer does not read its connection", listener=self._name)
            stopping.cancel()

    async def _until_end(self) -> tuple[str, bool]:
        """Return once the server has ended by itself; why, and whether grpc.aio shuts it down."""
        termination = asyncio.ensure_future(self._server.wait_for_termination(FOREVER))
        endings: set[asyncio.Future[object]] = {termination}  # type: ignore[arg-type]  # its result is not looked at
        if self._loop_of_server is not None:
            endings.add(self._loop_of_server)  # type: ignore[arg-type]
        try:
            done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        finally:
            termination.cancel()
        error = next(filter(None, map(_error, done)), None)
        if error is not None:
            return type(error).__name__, True  # its text may repeat a stranger's bytes
        return "its loop was ended", termination in done

    def _report(self, why: str) -> None:
        self._ended()
        now = time.monotonic()
        self._ends.append(now)
        is_often = len(self._ends) > MAX_ENDS and now - self._ends[0] < MINUTE
        report = log.error if is_often else log.warning
        report("gRPC server ended, making it again", listener=self._name, why=why)

    async def _listen_again(self) -> None:
        """Make a server on the same port; it is tried until it succeeds."""
        self._server = self._make()
        for attempt in itertools.count():
            why = self._bind_again()
            if why is None:
                break
            if attempt == REPORTED_ATTEMPT:
                log.error("cannot listen again; trying on", listener=self._name, why=why)
            await asyncio.sleep(REBIND_PAUSE)
        await self.start()
        log.info("listening again", listener=self._name, address=str(self._address))

    def _bind_again(self) -> str | None:
        """Bind the address again; returns why it cannot be."""
        try:
            listen(self._server, self._setting, self._address, self._tls)
        except SettingsError as error:
            return str(error)
        return None


async def _start(server: Server) -> "asyncio.Task[None] | None":
    """Start a server; returns the task of its loop, whose end is the server's; None where grpc.aio names it otherwise.

    `wait_for_termination` alone does not return where the loop was cancelled, or while calls go on.
    """
    before = asyncio.all_tasks()
    await server.start()
    for task in asyncio.all_tasks() - before:
        if getattr(task.get_coro(), "__qualname__", "").endswith("_server_main_loop"):
            return task
    return None


async def _close(server: grpc.aio.Server, *, is_told: bool) -> None:
    """Free what is left of a server whose loop has ended, once the calls under way are over.

    They go on meanwhile. `stop` is not called twice at a time, nor while grpc.aio itself is at it: both would use what
    the first has freed, and the process would end with SIGSEGV.

    Args:
        server: the server.
        is_told: grpc.aio has begun to shut it down.
    """
    if not is_told:
        with contextlib.suppress(Exception, asyncio.CancelledError):  # what ended the loop is raised again here
            await server.stop(FOREVER)
    while True:
        with contextlib.suppress(Exception):
            if await server.wait_for_termination(FOREVER):
                continue
        break
    await server.stop(None)


def _error(ended: "asyncio.Future[object]") -> BaseException | None:
    """Return the error that ended a task, if one did."""
    return None if ended.cancelled() else ended.exception()
