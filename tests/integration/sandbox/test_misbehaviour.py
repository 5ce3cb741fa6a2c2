"""The sandbox over real sockets: every way to fail that can be asked of it."""

import asyncio
import json
from io import BytesIO

import pytest

from service.sandbox.server import Behaviour, Sandbox
from tests.support.sandboxes import raw_answer, raw_post, record, refusal, running
from tests.support.waiting import DEADLINE, until


@pytest.mark.parametrize("status", [401, 404, 408, 429, 500, 503, 599])
async def test_a_drawn_refusal_takes_nothing_and_says_when_to_come_back(status: int) -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({str(status): 1}, retry_after="1500ms"))
    async with running(sandbox) as client:
        # when
        response = await client.post("/event", json=record())

        # then
        assert await refusal(response) == (status, "the sandbox was told to answer so")
        assert response.headers["Retry-After"] == "2"
        stats = await (await client.get("/stats")).json()
    assert stats == {"requests": 1, "records": 0, "answers": {str(status): 1}, "most_in_flight": 1}


async def test_a_drawn_redirect_leads_to_where_nothing_is() -> None:
    sandbox = Sandbox(behaviour=Behaviour({"302": 1}))
    async with running(sandbox) as client:
        response = await client.post("/event", json=record(), allow_redirects=False)

        assert (response.status, response.headers["Location"]) == (302, "/elsewhere")
        assert (await client.get("/elsewhere")).status == 404


@pytest.mark.parametrize("status", [201, 202, 204])
async def test_any_drawn_2xx_takes_a_good_record_and_refuses_a_bad_one(status: int) -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({str(status): 1}, retry_after="5s"))
    async with running(sandbox) as client:
        # when
        good = await client.post("/event", json=record())
        bad = await client.post("/event", json={})

        # then
        assert (good.status, bad.status) == (status, 400)
        assert "Retry-After" not in good.headers
    assert sandbox.taken == 1


async def test_a_drop_closes_the_connection_without_a_word() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({"drop": 1}))
    async with running(sandbox):
        # when
        answer = await raw_answer(sandbox, raw_post(json.dumps(record()).encode()))

    # then
    assert answer == b""
    assert (sandbox.records, sandbox.answers) == ([], {"drop": 1})


async def test_a_truncated_answer_ends_in_the_middle_of_its_header() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({"truncate": 1}))
    async with running(sandbox):
        # when
        answer = await raw_answer(sandbox, raw_post(json.dumps(record()).encode()))

    # then
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\n" not in answer
    assert sandbox.records == []


async def test_a_hang_lasts_until_the_client_goes_away() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({"hang": 1}))
    async with running(sandbox) as client:
        _, writer = await asyncio.open_connection(*sandbox.address)
        writer.write(raw_post(json.dumps(record()).encode()))
        await until(lambda: sandbox.answers["hang"] == 1)

        # when
        writer.close()
        await writer.wait_closed()

        # then
        sandbox.behaviour = Behaviour()
        await until(lambda: sandbox.in_flight == 0)
        assert (await client.post("/event", json=record())).status == 200


async def test_a_stop_ends_what_hangs() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({"hang": 1}))
    await sandbox.start("127.0.0.1", 0)
    hanging = asyncio.create_task(raw_answer(sandbox, raw_post(json.dumps(record()).encode())))
    await until(lambda: sandbox.answers["hang"] == 1)

    # when
    async with asyncio.timeout(DEADLINE):
        await sandbox.stop()

    # then
    assert await hanging == b""


async def test_a_record_is_taken_before_the_delay_of_its_answer() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour(delay=3600))
    async with running(sandbox):
        _, writer = await asyncio.open_connection(*sandbox.address)

        # when
        writer.write(raw_post(json.dumps(record()).encode()))

        # then
        await until(lambda: sandbox.taken == 1)
        assert sandbox.answers == {}
        writer.close()
        await writer.wait_closed()


async def test_an_answer_comes_after_its_delay() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({"503": 1}, delay=0.001))
    async with running(sandbox) as client:
        # when
        response = await client.post("/event", json=record())

        # then
        assert response.status == 503


async def test_the_most_posts_under_way_at_once_are_remembered() -> None:
    # given
    sandbox = Sandbox(behaviour=Behaviour({"hang": 1}))
    async with running(sandbox) as client:
        posts = [asyncio.create_task(client.post("/event", json=record())) for _ in range(3)]
        await until(lambda: sandbox.in_flight == 3)

        # when
        for post in posts:
            post.cancel()
        await asyncio.gather(*posts, return_exceptions=True)
        await until(lambda: sandbox.in_flight == 0)

    # then
    assert sandbox.most_in_flight == 3


async def test_the_behaviour_can_be_changed_while_running() -> None:
    async with running(Sandbox(behaviour=Behaviour(retry_after="9s"))) as client:
        # when
        changed = await client.post("/behaviour", json={"answers": {"503": 1}})

        # then
        expected = {"answers": {"503": 1}, "delay": "0s", "retry_after": None}
        assert (changed.status, await changed.json()) == (200, expected)
        assert await (await client.get("/behaviour")).json() == expected
        response = await client.post("/event", json=record())
        assert response.status == 503
        assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"answers": {"teapot": 1}}', 400, "answers: 'teapot' is no status from 200 to 599"),
        (b'{"delay": "soon"}', 400, "delay: 'soon' is not a duration"),
        (b"{", 400, "the body is not JSON: "),
        (b" " * (1024**2 + 1), 413, "the body is over 1 MiB"),
    ],
)
async def test_a_behaviour_that_cannot_be_changes_nothing(body: bytes, status: int, reason: str) -> None:
    # given
    before = Behaviour({"429": 1})
    sandbox = Sandbox(behaviour=before)
    async with running(sandbox) as client:
        # when
        response = await client.post("/behaviour", data=BytesIO(body))

        # then
        found, text = await refusal(response)
        assert found == status
        assert text.startswith(reason)
    assert sandbox.behaviour == before


async def test_the_same_seed_draws_the_same_answers() -> None:
    async def statuses() -> list[int]:
        async with running(Sandbox(behaviour=Behaviour({"200": 1, "503": 1}), seed=11)) as client:
            return [(await client.post("/event", json=record())).status for _ in range(20)]

    # when
    first, second = await statuses(), await statuses()

    # then
    assert first == second
    assert set(first) == {200, 503}
