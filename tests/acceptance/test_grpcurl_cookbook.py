"""docs/grpcurl.md: every command in it, run in order by the real grpcurl against a server and a sandbox."""

import asyncio
import os
import shlex
import sys
from pathlib import Path

import grpc

from pointillist_destination.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc, event_service_pb2
from pointillist_destination.v1 import event_service_pb2_grpc as event_grpc
from service.sandbox.server import Behaviour
from tests.support.events import track
from tests.support.paths import PROJECT
from tests.support.recipes import recipes_of
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

COOKBOOK = PROJECT / "docs" / "grpcurl.md"
ADDRESS = "localhost:50051"


async def _run(command: str) -> str:
    """Run a command of the cookbook; gives both of its outputs."""
    environ = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command.replace("\\\n", " ")),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE):
        out, _ = await process.communicate()
    return out.decode().rstrip("\n") + "\n"


async def _refuse_two(address: str) -> None:
    """Have two events become dead letters; the first is of u-1."""
    async with grpc.aio.insecure_channel(address) as channel:
        events = event_grpc.EventServiceStub(channel)
        letters = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
        async with asyncio.timeout(DEADLINE):
            for number in (1, 2):
                message = track(number, message_id=f"refused-{number}")
                await events.Track(event_service_pb2.TrackRequest(track=message))
                while len((await letters.List(dead_letter_service_pb2.ListRequest())).dead_letters) < number:
                    pass  # asked again: that a dead letter is there is only seen so


async def test_every_command_does_what_the_page_says(tmp_path: Path) -> None:
    # given
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        sandbox.behaviour = Behaviour({"400": 1.0})
        await _refuse_two(server.address)
        sandbox.behaviour = Behaviour()

        for recipe in recipes_of(COOKBOOK):
            # when
            said = await _run(recipe.command.replace(ADDRESS, server.address))

            # then
            assert recipe.is_met_by(said), f"{recipe.command}\n{said}"
