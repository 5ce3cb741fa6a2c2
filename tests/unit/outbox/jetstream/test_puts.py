"""Puts to a stream that does not acknowledge, or refuses."""

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import OutboxFullError, OutboxUnavailableError
from service.outbox.capacity import REFUSED_PAUSE
from service.outbox.jetstream.publisher import Message
from service.outbox.jetstream.puts import MAX_SILENCE, Puts
from service.outbox.jetstream.streams import Plan
from tests.support.clock import HandClock
from tests.support.events import entries
from tests.support.waiting import turns

QUEUED_AT = 1_800_000_000_000  # milliseconds since the epoch
LOST = OutboxUnavailableError("no acknowledgement", 1.0)


class Stream:
    """A Publisher whose acknowledgements come when a test gives them."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[list[int]]] = []

    async def publish(self, _: str, messages: Sequence[Message]) -> list[int]:
        """Publish messages."""
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await future
        return [0] * len(messages)

    def end(self, error: Exception | None = None) -> None:
        """End the oldest call."""
        future = self.waiting.pop(0)
        future.set_exception(error) if error else future.set_result([])


async def test_a_stream_that_does_not_acknowledge_for_five_seconds_takes_no_more_events() -> None:
    clock, stream = HandClock(), Stream()
    puts = Puts(stream, Plan("P"), clock)  # type: ignore[arg-type]

    # given a put that fails for want of an acknowledgement, and another that waits
    first = asyncio.ensure_future(puts.publish(entries(2), QUEUED_AT))
    await turns()
    clock.move(3.0)
    second = asyncio.ensure_future(puts.publish(entries(1), QUEUED_AT))
    await turns()
    stream.end(LOST)
    with pytest.raises(OutboxUnavailableError):
        await first
    assert puts.refusal(1.0) is None

    # when it has lasted for long
    clock.move(MAX_SILENCE - 2.5)
    puts.note_answer()  # JetStream answers other requests
    refusal = puts.refusal(1.0)

    # then
    assert refusal is not None
    assert "has not acknowledged an event for 5 s" in str(refusal)
    assert (puts.events, puts.bytes) == (1, len(entries(1)[0].payload))

    # until the stream acknowledges
    stream.end()
    await second
    assert puts.refusal(1.0) is None
    assert (puts.events, puts.bytes) == (0, 0)


async def test_a_stream_that_answers_again_takes_events_though_no_put_waits() -> None:
    clock, stream = HandClock(), Stream()
    puts = Puts(stream, Plan("P"), clock)  # type: ignore[arg-type]
    call = asyncio.ensure_future(puts.publish(entries(1), QUEUED_AT))
    await turns()
    stream.end(LOST)
    with pytest.raises(OutboxUnavailableError):
        await call
    clock.move(MAX_SILENCE + 1.0)
    assert puts.refusal(1.0) is not None
    puts.note_answer()
    assert puts.refusal(1.0) is None


async def test_one_slow_acknowledgement_among_others_refuses_nothing() -> None:
    clock, stream = HandClock(), Stream()
    puts = Puts(stream, Plan("P"), clock)  # type: ignore[arg-type]
    slow = asyncio.ensure_future(puts.publish(entries(1), QUEUED_AT))
    await turns()
    held = stream.waiting.pop()
    for number in range(10):
        clock.move(1.0)
        quick = asyncio.ensure_future(puts.publish(entries(1, first=number + 1), QUEUED_AT))
        await turns()
        stream.end()
        await quick
        assert puts.refusal(1.0) is None
    held.set_result([])
    await slow


async def test_a_full_stream_is_not_asked_again_for_a_moment() -> None:
    clock, stream = HandClock(), Stream()
    puts = Puts(stream, Plan("P"), clock)  # type: ignore[arg-type]
    call = asyncio.ensure_future(puts.publish(entries(1), QUEUED_AT))
    await turns()
    stream.end(OutboxFullError("the stream is full", 1.0))
    with pytest.raises(OutboxFullError):
        await call
    assert isinstance(puts.refusal(7.0), OutboxFullError)
    clock.move(REFUSED_PAUSE)
    assert puts.refusal(7.0) is None
