"""The sink: an HTTP server that takes any POST and costs less than what is measured.

It looks for the end of each request and writes a prepared answer; nothing else is parsed. It does no pipelining and
no chunked bodies, which none of the clients sends. Its gate can be closed: then requests wait for their answers, so
that a server can be started with its relay at the ready.

    {"do": "reset", "gate": "open" | "closed", "keys": bool}    > {}
    {"do": "open"}                                              > {"at": when the gate was opened}
    {"do": "wait", "count": int}                                > {"count": int, "first": time, "last": time}, when
                                                                  so many have come since the reset
    {"do": "arrivals"}                                          > {"arrivals": {Idempotency-Key: time}}

Times are seconds of the monotonic clock, which all processes of one machine share.
"""

import asyncio
import json
import time
from typing import Any, cast

import uvloop

from benchmarks.control import serve_commands

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HEAD_END = b"\r\n\r\n"
LENGTH = b"ength: "  # of "Content-Length" in either case
KEY = b"dempotency-"  # of "Idempotency-Key" in either case
KEY_SKIP = len(b"dempotency-Key: ")


class Sink:
    """What has arrived."""

    def __init__(self) -> None:
        self._reset(keys=False)
        self._open = asyncio.Event()
        self._open.set()
        self._wanted = 0
        self._reached = asyncio.Event()
        self._waiting: list[asyncio.Transport] = []

    def _reset(self, *, keys: bool) -> None:
        self.count = 0
        self._first = self._last = 0.0
        self._keys = keys
        self._arrivals: dict[str, float] = {}

    def arrived(self, data: bytes, head_end: int, transport: asyncio.Transport) -> None:
        """Count a whole request, and answer it if the gate is open."""
        self.count = count = self.count + 1
        if count == 1:
            self._first = time.monotonic()
        if self._keys:
            start = data.index(KEY, 0, head_end) + KEY_SKIP
            self._arrivals[data[start : data.index(b"\r", start)].decode()] = time.monotonic()
        if count == self._wanted:
            self._last = time.monotonic()
            self._reached.set()
        if self._open.is_set():
            transport.write(ANSWER)
        else:
            self._waiting.append(transport)

    async def handle(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a command says."""
        match command["do"]:
            case "reset":
                self._reset(keys=command["keys"])
                if command["gate"] == "closed":
                    self._open.clear()
                else:
                    self._open_gate()
                return {}
            case "open":
                at = time.monotonic()
                self._open_gate()
                return {"at": at}
            case "wait":
                self._wanted = command["count"]
                self._reached.clear()
                if self.count >= self._wanted:
                    self._last = time.monotonic()
                else:
                    await self._reached.wait()
                self._wanted = 0
                return {"count": self.count, "first": self._first, "last": self._last}
            case "arrivals":
                return {"arrivals": self._arrivals}
            case other:
                raise ValueError(f"the sink knows no command {other!r}")

    def _open_gate(self) -> None:
        self._open.set()
        for transport in self._waiting:
            if not transport.is_closing():
                transport.write(ANSWER)
        self._waiting.clear()


class Connection(asyncio.Protocol):
    """A connection: finds where requests end."""

    def __init__(self, sink: Sink) -> None:
        self._arrived = sink.arrived
        self._pending = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        while data:
            head_end = data.find(HEAD_END)
            if head_end < 0:
                break
            start = data.find(LENGTH, 0, head_end)
            if start < 0:
                self._transport.abort()  # a request without a length is none that this sink understands
                return
            start += len(LENGTH)
            end = head_end + len(HEAD_END) + int(data[start : data.index(b"\r", start)])
            if len(data) < end:
                break
            self._arrived(data, head_end, self._transport)
            data = data[end:]
        self._pending = data


async def main() -> None:
    loop = asyncio.get_running_loop()
    sink = Sink()
    server = await loop.create_server(lambda: Connection(sink), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await serve_commands(sink.handle)


if __name__ == "__main__":
    uvloop.run(main())
