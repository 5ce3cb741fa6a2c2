"""Calls that wait for a delivery while Pointillist takes nothing: they leave room for all others."""

import asyncio
from pathlib import Path

import grpc
import pytest

from pointillist_destination.v1.dead_letter_service_pb2 import ListRequest
from pointillist_destination.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from pointillist_destination.v1.event_service_pb2 import OUTCOME_ACCEPTED, OUTCOME_DELIVERED, SendOptions, TrackRequest
from service.sandbox.server import Behaviour
from tests.support.events import track
from tests.support.servers import failed, serving
from tests.support.waiting import until

WAIT = SendOptions(wait_for_delivery=True)


async def test_beyond_a_tenth_of_all_calls_none_waits_and_its_event_is_not_stored(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_MAX_CALLS": "20", "POINTILLIST_RETRY_MAX_DELAY": "200ms"}) as server:
        # given an outage, and as many calls as may wait
        server.sandbox.behaviour = Behaviour({"503": 1.0})
        waiting = [
            asyncio.ensure_future(server.events.Track(TrackRequest(track=track(number), options=WAIT)))
            for number in range(2)
        ]
        await until(lambda: server.sandbox.requests >= 2)

        # when
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await server.events.Track(TrackRequest(track=track(3), options=WAIT))

        # then
        error = failed(raised.value)
        assert (error.code, error.info.reason) == (grpc.StatusCode.UNAVAILABLE, "TOO_MANY_WAITING")
        assert error.retry_after is not None
        again = await server.events.Track(TrackRequest(track=track(3)))
        assert again.receipt.outcome == OUTCOME_ACCEPTED

        # and when Pointillist takes events, there is room again
        server.sandbox.behaviour = Behaviour()
        assert {(await call).receipt.outcome for call in waiting} == {OUTCOME_DELIVERED}
        last = await server.events.Track(TrackRequest(track=track(4), options=WAIT))
        assert last.receipt.outcome == OUTCOME_DELIVERED


async def test_operators_are_served_while_callers_use_up_all_calls(tmp_path: Path) -> None:
    async with serving(tmp_path, {"POINTILLIST_MAX_CALLS": "1", "POINTILLIST_RETRY_MAX_DELAY": "200ms"}) as server:
        # given
        server.sandbox.behaviour = Behaviour({"503": 1.0})
        waiting = asyncio.ensure_future(server.events.Track(TrackRequest(track=track(1), options=WAIT)))
        await until(lambda: server.sandbox.requests >= 1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await server.events.Track(TrackRequest(track=track(2)))
        assert failed(raised.value).info.reason == "TOO_MANY_CALLS"

        # when, then
        assert not (await DeadLetterServiceStub(server.channel).List(ListRequest())).dead_letters
        server.sandbox.behaviour = Behaviour()
        assert (await waiting).receipt.outcome == OUTCOME_DELIVERED
