"""A TCP proxy that a test cuts: a network that falls silent, or breaks connections."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK = 64 * 1024  # bytes forwarded at a time
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class CuttableProxy:
    """Forwards each connection to one address, unless it is cut."""

    def __init__(self, host: str, port: int) -> None:
        """Create it; `start` listens.

        Args:
            host: of the target.
            port: of the target.
        """
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self.port = 0
        """The port on 127.0.0.1 that it listens on."""

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """Forward nothing, like a network that drops every packet; connections stay open."""
        self._flows.clear()

    def reset(self) -> None:
        """Reset every connection, and each new one."""
        self._refuses = True
        for writer in self._writers:
            _reset(writer)

    def heal(self) -> None:
        """Forward again, starting with the data that was held back."""
        self._refuses = False
        self._flows.set()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._refuses:
                _reset(writer)
                return
            await self._flows.wait()
            with contextlib.suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection(*self._target)
                async with asyncio.TaskGroup() as both_ways:
                    both_ways.create_task(self._forward(reader, there_writer))
                    both_ways.create_task(self._forward(there_reader, writer))
        except asyncio.CancelledError:
            pass  # asyncio's server would log that its handler was cancelled
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward in one direction until that side closes."""
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK):
                    await self._flows.wait()
                    writer.write(data)
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset instead of an orderly end."""
    transport_socket: socket.socket | None = writer.get_extra_info("socket")
    if transport_socket is not None:
        transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()


@asynccontextmanager
async def cuttable(host: str, port: int) -> AsyncIterator[CuttableProxy]:
    """Run a proxy."""
    proxy = CuttableProxy(host, port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
