"""Requests that never become whole, and small ones that become large: memory stays bounded."""

from pathlib import Path

import grpc
import pytest

from tests.acceptance.attacks import without_end
from tests.acceptance.neighbours import BAD, EVENT_SERVICE, street
from tests.acceptance.requests_without_end import LARGE
from tests.support.raw_http2 import message, raw_connection
from tests.support.sizes import sized

MAX_PEAK = 200  # MiB
CALLS = sized(30, 100)  # on each connection
WATCHERS = sized(60, 200)
SECONDS = sized(1.0, 30.0)
MAX_MISSED = 4  # probes in a row, of four a second with half a second each: the attacker shares the machine


async def test_what_callers_without_a_token_send_fills_no_memory_and_holds_up_nobody(tmp_path: Path) -> None:
    async with street(tmp_path) as here:
        # when
        await here.beside(lambda: without_end(here, SECONDS, calls=CALLS, watchers=WATCHERS))
        await here.until_delivered()
        await here.stop()

        # then
        here.show()
        assert here.peak < MAX_PEAK
        assert here.stopped_in < 3.5
        assert here.seen["track"].ok_share == here.seen["batch"].ok_share == 1
        assert here.seen["health"].missed_in_a_row <= MAX_MISSED


@pytest.mark.parametrize("method", ["Track", "Identify"])
async def test_a_call_that_ends_without_a_whole_message_is_answered_and_counted(tmp_path: Path, method: str) -> None:
    async with street(tmp_path) as here, raw_connection(here.address) as connection:
        # when
        path = f"{EVENT_SERVICE}/{method}"
        nothing = await connection.call(path, token=BAD)
        cut = await connection.call(path, message(b"abc", length=10), token=BAD)
        large = await connection.call(path, message(bytes(60_000), length=LARGE + 1), token=BAD)
        answers = [await connection.ended(stream) for stream in (nothing, cut, large)]

        # then
        metrics = await here.server.metrics()
        handled = {name: value for name, value in metrics.items() if "handled_total" in name and f",{method}," in name}
        invalid, exhausted = grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert [answer.code for answer in answers[:2]] == [invalid] * 2
        assert all("not a" in answer.status.message for answer in answers[:2])
        assert answers[2].code in {invalid, exhausted}  # gRPC's own answer may be faster than ours
        assert {name: value for name, value in handled.items() if value} == {
            f"grpc_server_handled_total{{InvalidArgument,{method},pointillist_destination.v1.EventService,unary}}": 3
        }
