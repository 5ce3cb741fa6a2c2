"""The sandbox over real sockets: what Pointillist would answer, and what was taken."""

import asyncio
import gzip
import json
from io import BytesIO

import pytest
from aiohttp import ClientSession

from service.errors import SettingsError
from service.sandbox.server import Behaviour, Sandbox, serve_sandbox
from tests.support.sandboxes import raw_post, record, refusal, running
from tests.support.waiting import until


async def test_a_good_record_is_taken_with_its_message_id_and_its_bytes() -> None:
    # given
    sandbox = Sandbox()
    body = json.dumps(record()).encode()
    async with running(sandbox) as client:
        # when
        response = await client.post("/event", data=body, headers={"Idempotency-Key": "a%20b%25c%C3%A9"})

        # then
        assert response.status == 200
        assert await response.json() == {"status": "ok"}
    taken = sandbox.records[0]
    assert (taken.message_id, taken.body, taken.record) == ("a b%cé", body, record())
    assert (sandbox.requests, sandbox.taken, sandbox.answers) == (1, 1, {"200": 1})


async def test_a_record_without_an_idempotency_key_is_taken_without_a_message_id() -> None:
    sandbox = Sandbox()
    async with running(sandbox) as client:
        await client.post("/event", json=record())

    assert sandbox.records[0].message_id == ""


async def test_each_record_is_handed_on_as_one_line_of_json() -> None:
    # given
    lines: list[bytes] = []
    async with running(Sandbox(on_record=lines.append)) as client:
        # when
        await client.post("/event", data=json.dumps(record(), indent=2).replace("\n", "\r\n") + "\n")

    # then
    assert b"\n" not in lines[0]
    assert b"\r" not in lines[0]
    assert json.loads(lines[0]) == record()


@pytest.mark.parametrize("headers", [{}, {"apiToken": ""}, {"apiToken": "other"}, {"apiToken": "töken"}])
async def test_a_post_without_the_right_token_is_refused_whatever_the_behaviour(headers: dict[str, str]) -> None:
    # given
    sandbox = Sandbox(api_token="token", behaviour=Behaviour({"503": 1}))
    async with running(sandbox) as client:
        # when
        response = await client.post("/event", json=record(), headers=headers)

        # then
        assert await refusal(response) == (401, "the header apiToken is missing or not the right token")
    assert sandbox.records == []


async def test_a_post_with_the_right_token_is_taken() -> None:
    async with running(Sandbox(api_token="token")) as client:
        response = await client.post("/event", json=record(), headers={"apitoken": "token"})

        assert response.status == 200


async def test_a_record_of_the_wrong_shape_is_refused_with_the_reason() -> None:
    # given
    sandbox = Sandbox()
    async with running(sandbox) as client:
        # when
        response = await client.post("/event", json=record() | {"labels": {"age": 30}})

        # then
        assert await refusal(response) == (400, "labels.age: a label is a string, not a number")
    assert (sandbox.records, sandbox.answers) == ([], {"400": 1})


async def test_a_body_of_one_mebibyte_passes_and_one_more_byte_does_not() -> None:
    # given
    body = json.dumps(record()).encode().ljust(1024**2)
    async with running(Sandbox()) as client:
        # when
        passes = await client.post("/event", data=body)
        refused = await client.post("/event", data=BytesIO(body + b" "))

        # then
        assert passes.status == 200
        assert await refusal(refused) == (413, "the body is over 1 MiB")


async def test_a_compressed_body_is_refused_like_any_that_is_no_json() -> None:
    async with running(Sandbox()) as client:
        body = gzip.compress(json.dumps(record()).encode())
        response = await client.post("/event", data=body, headers={"Content-Encoding": "gzip"})

        status, reason = await refusal(response)
        assert status == 400
        assert reason.startswith("the body is not JSON: ")


async def test_a_body_that_is_cut_off_is_not_taken() -> None:
    # given
    sandbox = Sandbox()
    async with running(sandbox):
        _, writer = await asyncio.open_connection(*sandbox.address)
        writer.write(raw_post(json.dumps(record()).encode())[:-1])
        await until(lambda: sandbox.in_flight == 1)

        # when
        writer.close()
        await writer.wait_closed()

        # then
        await until(lambda: sandbox.in_flight == 0)
    assert (sandbox.records, sandbox.answers) == ([], {})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/event", "POST"), ("PUT", "/event", "POST"), ("POST", "/records", "GET, DELETE")],
)
async def test_another_method_is_refused_with_the_ones_allowed(method: str, path: str, allowed: str) -> None:
    async with running(Sandbox()) as client:
        response = await client.request(method, path)

        assert response.headers["Allow"] == allowed
        assert await refusal(response) == (405, f"{method} is not allowed on {path}; expected {allowed}")


async def test_another_path_is_not_found() -> None:
    async with running(Sandbox()) as client:
        response = await client.post("/events", json=record())

        status, reason = await refusal(response)
        assert status == 404
        assert "/event," in reason


@pytest.mark.parametrize(
    ("query", "expected"), [("", [1, 2, 3]), ("?limit=2", [2, 3]), ("?limit=0", []), ("?limit=9", [1, 2, 3])]
)
async def test_the_last_records_can_be_read_latest_last(query: str, expected: list[int]) -> None:
    async with running(Sandbox()) as client:
        # given
        for number in (1, 2, 3):
            await client.post("/event", json=record(number))

        # when
        response = await client.get(f"/records{query}")

        # then
        assert await response.json() == [record(number) for number in expected]


@pytest.mark.parametrize("limit", ["-1", "many", "", "1.5"])
async def test_a_limit_that_is_no_whole_number_is_refused(limit: str) -> None:
    async with running(Sandbox()) as client:
        response = await client.get("/records", params={"limit": limit})

        assert await refusal(response) == (400, f"limit: {limit!r} is not a whole number, zero or more")


async def test_beyond_its_bound_the_earliest_records_go_and_the_count_stays() -> None:
    # given
    sandbox = Sandbox(keep=2)
    async with running(sandbox) as client:
        # when
        for number in (1, 2, 3):
            await client.post("/event", json=record(number))

    # then
    assert [taken.record for taken in sandbox.records] == [record(2), record(3)]
    assert sandbox.taken == 3


async def test_deleting_the_records_starts_every_count_anew() -> None:
    async with running(Sandbox()) as client:
        # given
        await client.post("/event", json=record())

        # when
        response = await client.delete("/records")

        # then
        assert response.status == 204
        assert await (await client.get("/records")).json() == []
        stats = await (await client.get("/stats")).json()
        assert stats == {"requests": 0, "records": 0, "answers": {}, "most_in_flight": 0}


async def test_a_stopped_sandbox_refuses_connections_and_can_be_started_where_it_was() -> None:
    # given
    sandbox = Sandbox()
    async with running(sandbox) as client:
        await client.post("/event", json=record(1))
        url, address = sandbox.url, sandbox.address

        # when
        await sandbox.stop()

        # then
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)

        # when
        await sandbox.start(*address)

        # then
        async with ClientSession() as other:
            assert (await other.post(url, json=record(2))).status == 200
    assert sandbox.taken == 2


async def test_a_port_in_use_is_a_settings_error_that_names_it() -> None:
    # given
    first = Sandbox()
    async with running(first):
        host, port = first.address

        # when
        with pytest.raises(SettingsError) as refused:
            await Sandbox().start(host, port)

    # then
    assert str(refused.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose a free port of this machine"
    )


async def test_a_host_of_another_machine_is_a_settings_error_that_names_it() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign requested address; "):
        await Sandbox().start("192.0.2.1", 0)


@pytest.mark.parametrize("listen", ["8080", "127.0.0.1:", "127.0.0.1:65536", "[::1]", "::1:8080"])
async def test_an_address_that_is_none_is_a_settings_error(listen: str) -> None:
    with pytest.raises(SettingsError, match="expected HOST:PORT"):
        await serve_sandbox(listen, None, Behaviour())


@pytest.mark.parametrize("path", ["/records", "/behaviour"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.example:8080"}, 403),
        ({"Origin": "https://page.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080", "Origin": "http://127.0.0.1:8080"}, 200),
    ],
)
async def test_a_page_of_somebody_else_can_neither_read_nor_change_it(
    path: str, headers: dict[str, str], status: int
) -> None:
    async with running(Sandbox()) as client:
        response = await client.get(path, headers=headers)
        assert response.status == status
        if status == 403:
            assert "expected localhost or an IP address" in (await refusal(response))[1]


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("token", {}, 401),
        ("token", {"apiToken": "other"}, 401),
        ("token", {"apiToken": "token"}, 200),
        (None, {"apiToken": "token"}, 401),
    ],
)
async def test_beyond_loopback_its_records_and_behaviour_need_the_token(
    token: str | None, headers: dict[str, str], status: int
) -> None:
    # given
    sandbox = Sandbox(api_token=token)
    await sandbox.start("0.0.0.0", 0)
    try:
        async with ClientSession(f"http://127.0.0.1:{sandbox.address[1]}") as client:
            # when, then
            assert (await client.get("/records", headers=headers)).status == status
            assert (await client.post("/behaviour", json={}, headers=headers)).status == status
            assert (await client.get("/stats")).status == 200
    finally:
        await sandbox.stop()
