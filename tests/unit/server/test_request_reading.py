"""Requests that are being read: places, shares and turns of callers, and reads that never end."""

import asyncio
from typing import Any, cast

import grpc
import pytest

from service.server.request_reading import Context, RequestReading
from service.server.status import StatusError
from tests.support.waiting import turns


class Sender:
    """gRPC's side of a call whose request comes when the test says so."""

    def __init__(self) -> None:
        self.request: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.is_read = False

    async def read(self) -> Any:
        self.is_read = True
        return await self.request

    @property
    def context(self) -> Context:
        return cast("Context", self)


def read(reading: RequestReading, sender: Sender, caller: str | None) -> "asyncio.Task[bytes]":
    return asyncio.create_task(reading.read(sender.context, caller, "TrackRequest"))


async def test_a_caller_has_its_share_of_the_places_and_leaves_the_others() -> None:
    # given
    reading = RequestReading(places=4, share=2)
    hostile, honest = [Sender() for _ in range(5)], Sender()

    # when
    tasks = [read(reading, sender, "hostile") for sender in hostile]
    await turns()
    tasks.append(read(reading, honest, "honest"))
    await turns()

    # then
    assert [sender.is_read for sender in hostile] == [True, True, False, False, False]
    assert honest.is_read
    for sender in (honest, *hostile):
        sender.request.set_result(b"request")
    assert await asyncio.gather(*tasks) == [b"request"] * 6


async def test_places_are_handed_from_caller_to_caller() -> None:
    # given
    reading = RequestReading(places=1, share=1)
    senders = {name: Sender() for name in ("a1", "a2", "a3", "b1")}
    tasks = [read(reading, sender, name[0]) for name, sender in senders.items()]
    await turns()

    # when, then
    for name in ("a1", "a2", "b1", "a3"):
        assert senders[name].is_read, name
        senders[name].request.set_result(b"")
        await turns()
    await asyncio.gather(*tasks)


async def test_a_request_that_does_not_come_is_given_up_and_sooner_while_others_wait() -> None:
    # given
    reading = RequestReading(places=1, share=1, longest=60.0, contended=0.02)
    stuck, other = Sender(), Sender()
    task = read(reading, stuck, None)
    await turns()

    # when
    waiting = read(reading, other, None)
    with pytest.raises(StatusError) as raised:
        await task

    # then
    assert raised.value.status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    await turns()
    assert other.is_read
    other.request.set_result(b"request")
    assert await waiting == b"request"


async def test_who_waits_for_a_place_for_too_long_is_told_so_and_leaves_no_trace() -> None:
    # given
    reading = RequestReading(places=1, share=1, longest=0.05, contended=60.0)
    stuck, other, third = Sender(), Sender(), Sender()
    tasks = [read(reading, stuck, None), read(reading, other, None)]

    # when
    ends = await asyncio.gather(*tasks, return_exceptions=True)

    # then
    assert all(isinstance(end, StatusError) for end in ends)
    task = read(reading, third, None)
    await turns()
    assert third.is_read
    third.request.set_result(b"request")
    assert await task == b"request"


async def test_callers_that_give_up_give_their_places_back() -> None:
    # given
    reading = RequestReading(places=2, share=2)
    tasks = [read(reading, Sender(), "a") for _ in range(10)]
    await turns()

    # when
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    # then
    senders = [Sender(), Sender()]
    tasks = [read(reading, sender, "a") for sender in senders]
    await turns()
    assert all(sender.is_read for sender in senders)
    for sender in senders:
        sender.request.set_result(b"")
    await asyncio.gather(*tasks)


async def test_a_call_that_ends_without_a_request_is_refused_unless_it_may_end() -> None:
    reading = RequestReading(places=1, share=1)
    sender = Sender()
    sender.request.set_result(grpc.aio.EOF)
    with pytest.raises(StatusError, match="not a TrackRequest"):
        await reading.read(sender.context, None, "TrackRequest")
    end: object = await reading.read(sender.context, None, "TrackRequest", may_end=True)
    assert end is grpc.aio.EOF
