"""A client of HTTP/2 that sends whatever a test tells it to: frames by hand, and no rule kept.

It reads what the server sends unless told not to, acknowledges SETTINGS and PING, and gives no window back by itself.
"""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import hpack
from google.rpc import status_pb2

from tests.support.waiting import DEADLINE, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
CANCEL = 8
MAX_WINDOW = 2**31 - 1
INITIAL_WINDOW = 65_535  # bytes, of a connection
FRAME_HEADER = 9  # bytes
MESSAGE_HEADER = 5  # bytes
MAX_FRAME = 16_384  # bytes of payload
READ_SIZE = 262_144  # bytes

Header = tuple[bytes, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers_frame(stream: int, headers: Iterable[Header], *, ends: bool = False) -> bytes:
    """A HEADERS frame; no header is compressed, and any byte may be in one."""
    block = b"".join(b"\0" + _length(name) + name + _length(value) + value for name, value in headers)
    return frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream, block)


def data_frames(stream: int, content: bytes, *, ends: bool = False) -> bytes:
    """Content in DATA frames."""
    pieces = [content[start : start + MAX_FRAME] for start in range(0, len(content), MAX_FRAME)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if ends and number == last else 0, stream, piece) for number, piece in enumerate(pieces)
    )


def request_headers(path: str | bytes, token: str | None = None, more: Sequence[Header] = ()) -> list[Header]:
    """The headers with which a gRPC call begins."""
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode() if isinstance(path, str) else path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    return [*headers, *more]


def message(content: bytes, *, length: int | None = None, compressed: bool = False) -> bytes:
    """A gRPC message; `length` may be a lie."""
    return struct.pack(">BI", compressed, len(content) if length is None else length) + content


def _length(text: bytes) -> bytes:
    """The length of a string in HPACK, 7 bits and then 7 bits at a time."""
    length = len(text)
    if length < 127:
        return bytes((length,))
    length -= 127
    out = b"\x7f"
    while length >= 128:
        out += bytes((length & 127 | 128,))
        length >>= 7
    return out + bytes((length,))


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    """Initial and trailing metadata together."""
    data: int = 0
    """Bytes."""
    messages: int = 0
    """Whole gRPC messages."""
    content: bytearray = field(default_factory=bytearray)
    """The bytes, where the connection keeps them."""
    _header: bytes = b""
    _left: int = 0
    is_ended: bool = False
    is_reset: bool = False

    def take(self, payload: bytes) -> None:
        """Count the messages in the next DATA."""
        self.data += len(payload)
        at = 0
        while at < len(payload):
            if not self._left:
                need = MESSAGE_HEADER - len(self._header)
                self._header += payload[at : at + need]
                at += need
                if len(self._header) < MESSAGE_HEADER:
                    return
                self._left, self._header = int.from_bytes(self._header[1:], "big"), b""
            some = min(self._left, len(payload) - at)
            self._left -= some
            at += some
            if not self._left:
                self.messages += 1

    @property
    def code(self) -> int | None:
        """The gRPC code of its end; None before."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)

    @property
    def status(self) -> status_pb2.Status:
        """The rich status of its end."""
        encoded = self.headers.get("grpc-status-details-bin", "")
        return status_pb2.Status.FromString(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))


class RawConnection:
    """One connection, with as many streams as one likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keeps: bool = False) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = hpack.Decoder()
        self._keeps = keeps
        self._next_stream = 1
        self._reading: asyncio.Task[None] | None = None
        self.answers: dict[int, Answer] = {}
        self.is_closed = False
        """The server has closed the connection, or said that it will."""

    def next_stream(self) -> int:
        """A stream's number that is free."""
        number = self._next_stream
        self._next_stream += 2
        return number

    async def send(self, *frames: bytes) -> None:
        """Send bytes; nothing happens once the server has closed the connection."""
        self._writer.write(b"".join(frames))
        with suppress(ConnectionError):
            await self._writer.drain()

    async def call(
        self, path: str | bytes, content: bytes = b"", *, token: str | None = None, ends: bool = True, **more: bytes
    ) -> int:
        """Begin a call, with `content` as its DATA; returns its stream."""
        stream = self.next_stream()
        self.answers[stream] = Answer()
        extra = [(name.replace("_", "-").encode(), value) for name, value in more.items()]
        headers = headers_frame(stream, request_headers(path, token, extra), ends=ends and not content)
        await self.send(headers, data_frames(stream, content, ends=ends) if content else b"")
        return stream

    async def open_window(self, stream: int, size: int = MAX_WINDOW // 2) -> None:
        """Let the server send so many bytes more on a stream; on the connection for stream 0."""
        await self.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size)))

    async def ended(self, stream: int, deadline: float = DEADLINE) -> Answer:
        """Wait for the end of a stream.

        Raises:
            TimeoutError: it did not end.
        """
        answer = self.answers[stream]
        await until(lambda: answer.is_ended or self.is_closed, deadline)
        return answer

    def read(self) -> None:
        """Read what the server sends, from now on."""
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Close the connection without a word."""
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
        self._writer.transport.abort()

    async def _read(self) -> None:
        buffer = b""
        with suppress(ConnectionError):
            while chunk := await self._reader.read(READ_SIZE):
                buffer += chunk
                start = 0
                while len(buffer) - start >= FRAME_HEADER:
                    length = int.from_bytes(buffer[start : start + 3], "big")
                    if len(buffer) - start < FRAME_HEADER + length:
                        break
                    kind, flags, stream = struct.unpack_from(">BBI", buffer, start + 3)
                    payload = buffer[start + FRAME_HEADER : start + FRAME_HEADER + length]
                    start += FRAME_HEADER + length
                    await self._take(kind, flags, stream, payload)
                buffer = buffer[start:]
        self.is_closed = True

    async def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answer = self.answers.setdefault(stream, Answer()) if stream else Answer()
        if kind == HEADERS:
            answer.headers.update((str(name), str(value)) for name, value in self._decoder.decode(payload))
        elif kind == DATA:
            answer.take(payload)
            if self._keeps:
                answer.content += payload
        elif kind == RST_STREAM:
            answer.is_ended = answer.is_reset = True
        elif kind == SETTINGS and not flags & ACK:
            await self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            await self.send(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.is_closed = True
        if kind in {HEADERS, DATA} and flags & END_STREAM:
            answer.is_ended = True


@asynccontextmanager
async def raw_connection(
    address: str, *, window: int = INITIAL_WINDOW, reads: bool = True, keeps: bool = False, source: str | None = None
) -> AsyncIterator[RawConnection]:
    """Connect, with a first SETTINGS frame.

    Args:
        address: host and port.
        window: bytes that the server may send on each stream before it is given more.
        reads: read what the server sends.
        keeps: keep the content of DATA frames.
        source: the address to connect from, such as 127.0.0.2.
    """
    host, _, port = address.rpartition(":")
    local = None if source is None else (source, 0)
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), local_addr=local)
    connection = RawConnection(reader, writer, keeps=keeps)
    settings = struct.pack(">HIHI", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, window)
    try:
        await connection.send(PREFACE, frame(SETTINGS, 0, 0, settings))
        if reads:
            connection.read()
        yield connection
    finally:
        await connection.close()
