"""Floods of calls that fail in ways of which libraries tell: the log grows little, and repeats nothing."""

import time
from collections import deque
from pathlib import Path

from tests.acceptance.neighbours import BAD, DEAD_LETTER_SERVICE, EVENT_SERVICE, Street, street
from tests.support.raw_http2 import (
    CANCEL,
    RST_STREAM,
    Answer,
    Header,
    data_frames,
    frame,
    headers_frame,
    message,
    raw_connection,
    request_headers,
)
from tests.support.sizes import sized
from tests.support.waiting import until

CALLS = sized(300, 14_000)  # of each kind
AT_ONCE = 100
MAX_LOG = 100_000  # bytes
SECRET = "a-secret-in-metadata-that-is-not-utf-8"
BAD_METADATA = ((b"x-note", SECRET.encode() + b"\xff"),)
TRACK = f"{EVENT_SERVICE}/Track"


async def flood(here: Street, path: str, content: bytes, more: tuple[Header, ...] = (), *, cut: bool = False) -> None:
    """Make the calls of one kind, each with a right token; cut-off ones are reset at once."""
    reset = CANCEL.to_bytes(4, "big")
    for _ in range(CALLS // AT_ONCE):
        async with raw_connection(here.address) as connection:
            await connection.open_window(0)
            frames = []
            for _ in range(AT_ONCE):
                stream = connection.next_stream()
                connection.answers[stream] = Answer()
                frames += [
                    headers_frame(stream, request_headers(path, BAD, more)),
                    data_frames(stream, content, ends=True),
                ]
                if cut:
                    frames.append(frame(RST_STREAM, 0, stream, reset))
            await connection.send(*frames)
            if not cut:
                await until(lambda: all(answer.is_ended for answer in connection.answers.values()))


async def test_calls_that_fail_add_little_to_the_log_and_none_of_their_content(tmp_path: Path) -> None:
    async with street(tmp_path) as here:
        # given
        before = here.server.log_bytes
        here.server.log = deque(here.server.log)  # all of it

        # when
        started = time.monotonic()
        await flood(here, TRACK, message(b""), BAD_METADATA)
        await flood(here, TRACK, message(b""), BAD_METADATA, cut=True)
        await flood(here, TRACK, message(b"\xff" + SECRET.encode()))
        await flood(here, f"{DEAD_LETTER_SERVICE}/List", message(b""))
        await flood(here, f"{EVENT_SERVICE}/BatchSend", message(b"\x12\x00" * 100), cut=True)
        seconds = time.monotonic() - started
        await here.beside(lambda: until(lambda: True))
        logged = here.server.log_bytes - before

        # then
        print(f"{logged} bytes in {seconds:.1f} s")  # noqa: T201
        assert 0 < logged < MAX_LOG
        kept = "\n".join(here.server.log)
        assert SECRET not in kept
        assert BAD not in kept
        assert here.seen["track"].ok_share == 1
