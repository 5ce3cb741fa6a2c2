"""A set-up that is wrong: nothing is lost, the server says so, and goes on by itself once it is mended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pointillist_destination.v1 import (
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
)
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import event, track
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until

WRONG_TOKEN = "a-token-of-yesterday"
REDIRECTS = (302, 307, 301, 303, 308)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Server:
    """A running server process and a channel to it."""

    process: ServerProcess
    channel: grpc.aio.Channel

    async def send(self, count: int) -> None:
        """Have so many events accepted, in one batch."""
        request = event_service_pb2.BatchSendRequest(events=[event(number) for number in range(count)])
        call = event_service_pb2_grpc.EventServiceStub(self.channel).BatchSend(iter([request]))
        [answer] = [answer async for answer in call]
        assert answer.accepted == count

    async def health(self, name: str) -> int:
        """What it says of its health."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
        return status

    async def becomes(self, name: str, status: int) -> None:
        """Wait until its health is so."""

        async def is_so() -> bool:
            return await self.health(name) == status

        await eventually(is_so)

    def said(self) -> list[tuple[str, str, str]]:
        """What its log says of the relay and the token: the event, the cause and the answer."""
        lines = [orjson.loads(line) for line in self.process.log]
        return [
            (line["event"], line.get("cause", ""), line.get("answer", ""))
            for line in lines
            if line["event"].startswith(("relay", "API token"))
        ]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds that has to be asked for over a socket."""
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(settings: dict[str, str]) -> AsyncIterator[Server]:
    """Run a server process."""
    process = await ServerProcess.start(settings)
    try:
        async with grpc.aio.insecure_channel(process.address) as channel:
            yield Server(process, channel)
        await process.stop()
    finally:
        await process.kill()


@asynccontextmanager
async def sandboxed(behaviour: Behaviour | None = None) -> AsyncIterator[Sandbox]:
    """Run a sandbox that knows the right token."""
    sandbox = Sandbox(api_token=TOKEN, behaviour=behaviour)
    await sandbox.start("127.0.0.1", 0)
    try:
        yield sandbox
    finally:
        await sandbox.stop()


@dataclass
class Web:
    """An HTTP server that answers as it is told and keeps the headers, in lower case, of what it was sent."""

    answer: Callable[[web.BaseRequest], web.Response]
    url: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Web"]:
        """Listen on a free port."""

        async def handle(request: web.BaseRequest) -> web.Response:
            await request.read()
            self.requests.append({name.lower(): value for name, value in request.headers.items()})
            return self.answer(request)

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/event"
        try:
            yield self
        finally:
            await runner.cleanup()


def replace(path: Path, text: str) -> None:
    """Put a file in the place of another at one stroke, so that nobody reads half of it."""
    path.with_suffix(".new").write_text(text, encoding="utf-8")
    path.with_suffix(".new").replace(path)


def with_token_file(settings: dict[str, str], path: Path) -> dict[str, str]:
    """The same settings with the token in a file."""
    return {name: value for name, value in settings.items() if name != "POINTILLIST_API_TOKEN"} | {
        "POINTILLIST_API_TOKEN_FILE": str(path)
    }


async def test_a_wrong_token_loses_nothing_and_the_right_one_in_its_file_mends_it(
    tmp_path: Path, relay_workers: str
) -> None:
    token = tmp_path / "token"
    token.write_text(WRONG_TOKEN, encoding="utf-8")
    async with (
        sandboxed() as sandbox,
        serving(
            with_token_file(settings_for(tmp_path / "outbox.db", sandbox, relay_workers=relay_workers), token)
        ) as server,
    ):
        # given
        await server.send(50)
        await server.becomes("delivery", NOT_SERVING)
        at_first = sandbox.requests
        await until(lambda: sandbox.requests > at_first)  # a probe
        ready, refused = await server.health(""), sandbox.requests

        # when
        replace(token, TOKEN)

        # then
        await until(lambda: sandbox.taken == 50)
        await server.becomes("delivery", SERVING)
        assert len({taken.message_id for taken in sandbox.records}) == 50
        assert await server.process.dead_letters() == []
        assert ready == SERVING
        assert refused <= 50
        story = server.said()
        assert story[0] == ("relay paused", "setup", "401")
        assert sorted(story[1:]) == [("API token changed", "", ""), ("relay resumed", "", "")]


async def test_no_token_is_ever_told_in_the_log_the_metrics_or_an_error(tmp_path: Path, relay_workers: str) -> None:
    def echo(request: web.BaseRequest) -> web.Response:
        token = request.headers["apiToken"]
        return web.Response(status=401 if token == WRONG_TOKEN else 400, text=f"what is {token} to me?")

    token = tmp_path / "token"
    token.write_text(WRONG_TOKEN, encoding="utf-8")
    async with Web(echo).running() as pointillist:
        settings = with_token_file(settings_for(tmp_path / "outbox.db", Sandbox(), relay_workers=relay_workers), token)
        settings |= {"POINTILLIST_API_URL": pointillist.url, "POINTILLIST_LOG_LEVEL": "debug"}
        async with serving(settings) as server:
            # given
            stub = event_service_pb2_grpc.EventServiceStub(server.channel)
            request = event_service_pb2.TrackRequest(
                track=track(1), options=event_service_pb2.SendOptions(wait_for_delivery=True)
            )
            waiting = asyncio.ensure_future(stub.Track(request))
            await server.becomes("delivery", NOT_SERVING)

            # when
            replace(token, TOKEN)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await waiting
            [letter] = await server.process.dead_letters()
            async with aiohttp.ClientSession() as client, client.get(server.process.metrics_url) as response:
                metrics = await response.text()
        told = [*server.process.log, metrics, repr(raised.value), repr(raised.value.trailing_metadata()), str(letter)]

        # then
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "what is [token] to me?" in letter.detail
        assert {headers["apitoken"] for headers in pointillist.requests} == {WRONG_TOKEN, TOKEN}
        assert not [text for text in told if TOKEN in text or WRONG_TOKEN in text]


async def test_a_first_day_on_which_everything_is_refused_costs_a_hundred_dead_letters_and_no_event(
    tmp_path: Path, relay_workers: str
) -> None:
    async with (
        sandboxed(Behaviour({"400": 1.0})) as sandbox,
        serving(settings_for(tmp_path / "outbox.db", sandbox, relay_workers=relay_workers)) as server,
    ):
        # given
        await server.send(300)
        await server.becomes("delivery", NOT_SERVING)
        refused = sandbox.requests
        await until(lambda: sandbox.requests > refused + 1)  # it goes on to probe, and buries nothing more
        letters = await server.process.dead_letters()

        # when
        sandbox.behaviour = Behaviour()
        await until(lambda: sandbox.taken == 200)
        stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(server.channel)
        replayed = (await stub.Replay(dead_letter_service_pb2.ReplayRequest(all=True))).replayed

        # then
        await until(lambda: sandbox.taken == 300)
        assert (len(letters), replayed) == (100, 100)
        taken = [record.message_id for record in sandbox.records]
        assert sorted(taken) == sorted(f"m-{number}" for number in range(300))
        assert sorted(taken[200:]) == sorted(letter.message_id for letter in letters)
        assert await server.process.dead_letters() == []
        assert server.said()[0][:2] == ("relay paused", "refusals")


@pytest.mark.parametrize("client", ["pyreqwest", pytest.param("httpx2", marks=pytest.mark.long)])
async def test_a_redirect_is_not_followed_and_loses_nothing(tmp_path: Path, client: str, relay_workers: str) -> None:
    elsewhere = Web(lambda _: web.Response(text="thank you for the token"))
    async with elsewhere.running():
        statuses = cycle(REDIRECTS)
        redirecting = Web(lambda _: web.Response(status=next(statuses), headers={"Location": elsewhere.url}))
        async with redirecting.running():
            settings = settings_for(tmp_path / "outbox.db", Sandbox(), http_client=client, relay_workers=relay_workers)
            async with serving(settings | {"POINTILLIST_API_URL": redirecting.url}) as server:
                # given
                await server.send(50)
                await server.becomes("delivery", NOT_SERVING)
                at_first = len(redirecting.requests)
                await until(lambda: len(redirecting.requests) > at_first)  # a probe
                letters = await server.process.dead_letters()

                # when
                redirecting.answer = lambda _: web.Response()
                await server.becomes("delivery", SERVING)

                # then
                await eventually(lambda: is_empty(server))
                keys = [headers["idempotency-key"] for headers in redirecting.requests]
                assert letters == []
                assert set(keys) == {f"m-{number}" for number in range(50)}
                assert elsewhere.requests == []
                assert server.said()[0][:2] == ("relay paused", "setup")


async def is_empty(server: Server) -> bool:
    """Whether nothing waits in the outbox any more."""
    return (await server.process.metrics())["outbox_events"] == 0
