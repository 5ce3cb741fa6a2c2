"""The most that one stream of JetStream takes: prepared bytes over one socket, so that the client costs little.

A client library would be measured with it, and is slower than the server.
"""

import json
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

STREAM = "CEILING"  # the stream that is made, and its subject
INBOX = "_INBOX.ceiling"  # where acknowledgements come
CHUNK = 500  # messages sent at once
CHUNKS_AHEAD = 6  # sent and not acknowledged; JetStream queues 10,000 messages and refuses more
ANSWER_TIME = 60.0  # seconds until an answer counts as lost
STORED = b'"seq":'  # once in each acknowledgement
REFUSED = b'"error":'


class Publisher:
    """A connection that publishes to a stream of its own."""

    def __init__(self, url: str, replicas: int = 1) -> None:
        """Connect, and make the stream.

        Args:
            url: where NATS is.
            replicas: on how many servers each message is kept.
        """
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), ANSWER_TIME)
        self._rest = b""
        config = {"name": STREAM, "subjects": [STREAM], "retention": "workqueue", "num_replicas": replicas}
        question = json.dumps(config).encode()
        self._socket.sendall(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB %s.* 1\r\n' % INBOX.encode()
            + b"PUB $JS.API.STREAM.CREATE.%s %s.made %d\r\n" % (STREAM.encode(), INBOX.encode(), len(question))
            + question
            + b"\r\n"
        )
        answer = b""
        while b'"config"' not in answer:
            answer += self._read()
            if REFUSED in answer:
                raise RuntimeError(f"JetStream makes no stream: {answer.decode(errors='replace')}")

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def publish(self, messages: Sequence[tuple[str, bytes]]) -> float:
        """Publish messages with their ids; returns the seconds until the last was acknowledged."""
        chunks = [
            b"".join(_command(*message) for message in messages[start : start + CHUNK])
            for start in range(0, len(messages), CHUNK)
        ]
        sent = acknowledged = 0
        started = time.monotonic()
        while acknowledged < len(messages):
            while sent < len(chunks) and sent * CHUNK - acknowledged < CHUNK * CHUNKS_AHEAD:
                self._socket.sendall(chunks[sent])
                sent += 1
            acknowledged += self._read().count(STORED)
        return time.monotonic() - started

    def _read(self) -> bytes:
        """Read lines that are whole."""
        read = self._rest + self._socket.recv(1 << 20)
        whole, self._rest = read[: read.rfind(b"\n") + 1], read[read.rfind(b"\n") + 1 :]
        if REFUSED in whole:
            raise RuntimeError(f"JetStream refuses: {whole.decode(errors='replace')[:1000]}")
        if b"PING\r\n" in whole:
            self._socket.sendall(b"PONG\r\n")
        return whole


def _command(message_id: str, payload: bytes) -> bytes:
    headers = b"NATS/1.0\r\nNats-Msg-Id: %s\r\n\r\n" % message_id.encode()
    size = len(headers) + len(payload)
    return (
        b"HPUB %s %s.0 %d %d\r\n" % (STREAM.encode(), INBOX.encode(), len(headers), size) + headers + payload + b"\r\n"
    )
