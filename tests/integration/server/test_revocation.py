"""Rights that are taken away while a stream is open: answers to what was read come first, then its end."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, BatchSendResponse
from service.intake.callers import Callers
from service.outbox.sqlite.outbox import SqliteOutbox
from tests.support.events import event
from tests.support.servers import Failed, Serving, failure, serving
from tests.support.waiting import until

OLD, NEW = "a-token-that-is-changed", "a-token-instead"
WITHIN = 3.0  # seconds: a look at the file each second, on a busy machine

Stream: TypeAlias = "grpc.aio.StreamStreamCall[BatchSendRequest, BatchSendResponse]"


def table(*tokens: str, more: str = "") -> str:
    digests = ", ".join(f'"{hashlib.sha256(token.encode()).hexdigest()}"' for token in tokens)
    return f"[callers.checkout]\nsha256 = [{digests}]\n{more}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A callers file with one caller."""
    path = tmp_path / "callers.toml"
    path.write_text(table(OLD))
    return path


@pytest.fixture
async def server(tmp_path: Path, file: Path) -> AsyncIterator[Serving]:
    """A server with that file."""
    async with serving(tmp_path, {"POINTILLIST_CALLERS_FILE": str(file)}) as running:
        yield running


def write(file: Path, content: str) -> None:
    """Write the file."""
    file.write_text(content)


def change(server: Serving, file: Path, content: str) -> None:
    """Write the file, and have it read at once."""
    write(file, content)
    server.app.reload()


async def open_stream(server: Serving, token: str = OLD) -> Stream:
    """A stream that is idle after its first answer."""
    stream = server.events.BatchSend(metadata=(("authorization", f"Bearer {token}"),))
    await send(stream, 0)
    return stream


async def send(stream: Stream, number: int) -> int:
    """Send a batch of one event; returns how many were accepted."""
    await stream.write(BatchSendRequest(sequence=number, events=[event(number)]))
    answer = await stream.read()
    assert isinstance(answer, BatchSendResponse), await stream.details()
    return answer.accepted


async def end(stream: Stream) -> Failed:
    """Wait for the end of a stream."""
    return await failure(stream.read())


async def in_force(server: Serving, is_known: Callable[[Callers], object]) -> None:
    """Wait until such callers are in force."""
    callers = server.app._callers
    assert callers is not None
    await until(lambda: is_known(callers.current()))


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (table(NEW), grpc.StatusCode.UNAUTHENTICATED, "UNKNOWN_TOKEN"),
        (table(OLD, more='methods = ["DeadLetterService"]'), grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED"),
    ],
)
async def test_an_idle_stream_ends_once_its_right_is_taken_away(
    server: Serving, file: Path, content: str, code: grpc.StatusCode, reason: str
) -> None:
    # given
    stream = await open_stream(server)

    # when
    began = time.monotonic()
    write(file, content)  # nobody asks for it to be read

    # then
    fault = await end(stream)
    assert (fault.code, fault.info.reason) == (code, reason)
    assert time.monotonic() - began < WITHIN


async def test_a_stream_goes_on_while_its_token_is_one_of_two(server: Serving, file: Path) -> None:
    # given
    stream = await open_stream(server)

    # when a token is changed: both, then the new one alone
    change(server, file, table(OLD, NEW))
    await in_force(server, lambda callers: callers.find(NEW))
    assert await send(stream, 1) == 1
    other = await open_stream(server, NEW)
    change(server, file, table(NEW))

    # then
    assert (await end(stream)).info.reason == "UNKNOWN_TOKEN"
    assert await send(other, 2) == 1


async def test_answers_to_what_was_read_come_before_the_end(
    server: Serving, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given batches that were read, and wait for the disk
    stream = await open_stream(server)
    put, may_put, waiting = SqliteOutbox.put, asyncio.Event(), 0

    async def wait(outbox: SqliteOutbox, *arguments: object, **more: object) -> list[bool]:
        nonlocal waiting
        waiting += 1
        await may_put.wait()
        return await put(outbox, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteOutbox, "put", wait)
    for number in (1, 2, 3):
        await stream.write(BatchSendRequest(sequence=number, events=[event(number)]))
    await until(lambda: waiting == 3)

    # when
    change(server, file, table(NEW))
    await in_force(server, lambda callers: callers.find(NEW))
    may_put.set()

    # then
    answers = [await stream.read() for _ in range(3)]
    assert [answer.sequence for answer in answers if isinstance(answer, BatchSendResponse)] == [1, 2, 3]
    assert (await end(stream)).info.reason == "UNKNOWN_TOKEN"


async def test_a_rate_that_is_changed_holds_for_open_streams(server: Serving, file: Path) -> None:
    # given
    stream = await open_stream(server)

    # when
    change(server, file, table(OLD, more="events_per_second = 4\nburst = 1"))
    await in_force(server, lambda callers: callers.find(OLD).events_per_second)  # type: ignore[union-attr]
    began = time.monotonic()
    for number in (1, 2, 3):
        await send(stream, number)

    # then the third waited until a quarter of a second had passed
    assert time.monotonic() - began >= 0.2
