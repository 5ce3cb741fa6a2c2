"""Secrets are nowhere to be read: not in a log line, a metric, an answer or a repr, whatever goes wrong.

A server at debug level is called rightly and wrongly, with a Pointillist that answers in every way there is, and
with files that change into rubbish; then all that it said is searched.
"""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import nkeys
import pytest
from pydantic import SecretStr

from pointillist_destination.v1 import event_pb2
from pointillist_destination.v1.dead_letter_service_pb2 import GetRequest, ReplayRequest
from pointillist_destination.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, SendOptions, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.app import App
from service.config.settings import Settings, load_settings
from service.config.token import watch_token
from service.intake.callers import watch_callers
from service.outbox.factory import nats_access
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import event, track
from tests.support.nats import nats_running
from tests.support.processes import run
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until

API_TOKEN = "planted-api-token-4b1d"
NEW_API_TOKEN = "planted-new-api-token-77ce"
CALLER_TOKEN = "planted-caller-token-9c2e"
WRONG_TOKEN = "planted-wrong-token-51aa"
CONTENT = "planted-property-value-e03f"
USER = "planted-user-id-6d40"
NATS_USER = "destination"
NATS_PASSWORD = "planted-nats-password-0f3a"
NATS_JWT = "planted-nats-jwt-1be8"
CREDENTIALS = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""
SECRETS = (API_TOKEN, NEW_API_TOKEN, CALLER_TOKEN, WRONG_TOKEN, CONTENT, USER)
BEARER = (("authorization", f"Bearer {CALLER_TOKEN}"),)
ANSWERS = ("200", "400", "401", "408", "429", "500", "drop", "truncate")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def callers() -> str:
    return f"""[callers.checkout]
sha256 = "{digest(CALLER_TOKEN)}"
methods = ["EventService", "DeadLetterService/List", "DeadLetterService/Replay"]
"""


def planted(number: int) -> event_pb2.Event:
    return event(number, user_id=USER, event=CONTENT, properties={"card": CONTENT, CONTENT: 1})


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A Pointillist that takes any token, for it is the answers that are to be wrong."""
    running = Sandbox()
    await running.start("127.0.0.1", 0)
    yield running
    await running.stop()


async def call_rightly_and_wrongly(address: str, first: int) -> list[str]:
    """Call in every way; gives what the errors said."""
    said: list[str] = []

    async def fails(call: Awaitable[object]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            said.append(f"{error.details()} {error.trailing_metadata()!r}")

    async with grpc.aio.insecure_channel(address) as channel:
        events, letters = EventServiceStub(channel), DeadLetterServiceStub(channel)
        good = planted(first).track
        await events.Track(TrackRequest(track=good), metadata=BEARER)
        waiting = TrackRequest(track=planted(first + 1).track, options=SendOptions(wait_for_delivery=True))
        await fails(events.Track(waiting, metadata=BEARER, timeout=0.5))
        faulty = track(first + 2, user_id=USER, properties={"card": CONTENT, "bad": float("nan")})
        for wrong in (
            TrackRequest(track=faulty),
            TrackRequest(track=track(0, message_id=CONTENT * 10, user_id=USER)),
            TrackRequest(track=track(0, user_id="", properties={CONTENT: CONTENT})),
        ):
            await fails(events.Track(wrong, metadata=BEARER))
        await fails(events.Track(TrackRequest(track=good)))
        await fails(events.Track(TrackRequest(track=good), metadata=(("authorization", f"Bearer {WRONG_TOKEN}"),)))
        raw: Any = channel.unary_unary("/pointillist_destination.v1.EventService/Track")
        await fails(raw(good.SerializeToString()[:-3] + CONTENT.encode(), metadata=BEARER))
        stream = events.BatchSend(metadata=BEARER)
        await stream.write(BatchSendRequest(sequence=1, events=[planted(first + 3), event_pb2.Event(track=faulty)]))
        said.append(str(await stream.read()))
        stream.cancel()
        await fails(letters.Get(GetRequest(id=1), metadata=BEARER))
        await letters.Replay(ReplayRequest(all=True), metadata=BEARER)
    return said


async def test_no_secret_is_in_a_log_line_a_metric_or_an_error(
    tmp_path: Path, sandbox: Sandbox, relay_workers: str
) -> None:
    # given
    files = {name: tmp_path / name for name in ("token", "callers.toml", "mapping.toml")}
    files["token"].write_text(API_TOKEN)
    files["callers.toml"].write_text(callers())
    files["mapping.toml"].write_text('event_source = "Segment"\n')
    settings = settings_for(
        tmp_path / "outbox.db",
        sandbox,
        api_token_file=str(files["token"]),
        callers_file=str(files["callers.toml"]),
        mapping_file=str(files["mapping.toml"]),
        log_level="debug",
        request_timeout="1s",
        retry_max_delay="50ms",
        shutdown_grace="1s",
        relay_workers=relay_workers,
    )
    del settings["POINTILLIST_API_TOKEN"]
    server = await ServerProcess.start(settings)
    server_log: list[str] = []
    said: list[str] = []
    try:
        # when
        for turn, answer in enumerate(ANSWERS):
            sandbox.behaviour = Behaviour.from_json({"answers": {answer: 1}})
            posts = len(sandbox.records)
            said += await call_rightly_and_wrongly(server.address, turn * 10)
            if answer == "200":
                await until(lambda posts=posts: len(sandbox.records) > posts)  # type: ignore[misc]  # it is bound here
            server_log += server.log
        for path in files.values():
            path.write_text(f"{NEW_API_TOKEN}\n{CONTENT} = [")
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: sum("refused" in line for line in server.log) >= 2)
        async with aiohttp.ClientSession() as client, client.get(server.metrics_url) as response:
            metrics = await response.text()
        await asyncio.wait_for(server.stop(), 20)
    finally:
        server_log += server.log
        await server.kill()

    # then all of it went wrong as it should
    assert len(said) >= 8 * len(ANSWERS)
    assert any('"event":"call"' in line and "UNAUTHENTICATED" in line for line in server_log)
    # and nothing of it shows
    for secret in SECRETS:
        assert [line for line in server_log if secret in line] == []
        assert secret not in metrics
    for secret in (API_TOKEN, NEW_API_TOKEN, CALLER_TOKEN, WRONG_TOKEN, digest(CALLER_TOKEN), CONTENT):
        assert [one for one in said if secret in one] == []


async def test_no_secret_of_nats_is_in_a_log_line_a_metric_or_an_error(tmp_path: Path, sandbox: Sandbox) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
    users = f'{{user: "{NATS_USER}", password: "{NATS_PASSWORD}"}}, {{nkey: "{public_key(seed)}"}}'
    credentials = tmp_path / "nats.creds"
    credentials.write_text(CREDENTIALS.format(jwt=NATS_JWT, seed=seed))
    with nats_running(tmp_path / "nats", f"authorization {{ users: [{users}] }}") as nats:

        def settings(password: str, **more: str) -> dict[str, str]:
            url = f"nats://{NATS_USER}:{password}@127.0.0.1:{nats.port}"
            return settings_for(url, sandbox, log_level="debug", **more)

        # given a server that NATS knows, and two that it does not
        servers = [
            await ServerProcess.spawn(settings(NATS_PASSWORD)),
            await ServerProcess.spawn(settings(WRONG_TOKEN)),
            await ServerProcess.spawn(settings(NATS_PASSWORD, nats_credentials_file=str(credentials))),
        ]
        said: list[str] = []
        try:
            # when
            looking = asyncio.create_task(run("doctor", environ=settings(WRONG_TOKEN)))
            await asyncio.gather(*(server.serving() for server in servers))
            doctor = await looking
            said += [doctor.out, doctor.err]
            codes = [await call_once(server.address, 1, said) for server in servers]
            nats.stop(signal.SIGKILL)
            await until(lambda: any("lost connection to NATS" in line for line in servers[0].log))
            codes.append(await call_once(servers[0].address, 2, said))
            async with aiohttp.ClientSession() as client:
                for server in servers:
                    async with client.get(server.metrics_url) as response:
                        said.append(await response.text())
        finally:
            for server in servers:
                await server.kill()
                said += server.log

    # then it went as it should
    assert codes == [grpc.StatusCode.OK, *[grpc.StatusCode.UNAVAILABLE] * 3]
    assert any("Authorization Violation" in one for one in said)
    # and nothing of it shows
    for secret in (NATS_PASSWORD, WRONG_TOKEN, NATS_JWT, seed):
        assert [one for one in said if secret in one] == []


def public_key(seed: str) -> str:
    """What a NATS server knows the owner of a seed by."""
    key: bytes = nkeys.from_seed(seed.encode()).public_key
    return key.decode()


async def call_once(address: str, number: int, said: list[str]) -> grpc.StatusCode:
    """Send an event; gives the status, and keeps what an error said."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = EventServiceStub(channel).Track(TrackRequest(track=track(number)), timeout=DEADLINE)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            said.append(f"{error.details()} {error.trailing_metadata()!r}")
        return await call.code()


async def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    token_file, callers_file = tmp_path / "token", tmp_path / "callers.toml"
    token_file.write_text(API_TOKEN)
    callers_file.write_text(callers())
    environ = {
        "POINTILLIST_API_TOKEN": API_TOKEN,
        "POINTILLIST_CALLERS_FILE": str(callers_file),
        "POINTILLIST_OUTBOX_URL": f"nats://{NATS_USER}:{NATS_PASSWORD}@127.0.0.1:4222",
    }
    settings = load_settings(environ)
    shown = [
        settings,
        settings.nats_servers,
        nats_access(settings),
        Settings(api_token=SecretStr(API_TOKEN)),
        settings.require_token(),
        watch_token(token_file),
        App(settings),
        watch_callers(callers_file),
        watch_callers(callers_file).current(),
        watch_callers(callers_file).current().find(CALLER_TOKEN),
        settings.model_dump(mode="json"),
    ]
    for secret in (API_TOKEN, CALLER_TOKEN, digest(CALLER_TOKEN), NATS_PASSWORD):
        assert secret not in repr(shown) + str(shown)
