"""docs/grpcurl.md: every command in it, run in order by the real grpcurl against a server and a sandbox."""

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

import grpc

from pointillist_destination.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc, event_service_pb2
from pointillist_destination.v1 import event_service_pb2_grpc as event_grpc
from service.sandbox import Behaviour
from tests.integration.processes import PROJECT, running_sandbox, running_server
from tests.support.events import track
from tests.support.waiting import DEADLINE

COOKBOOK = PROJECT / "docs" / "grpcurl.md"
ADDRESS = "localhost:50051"
RECIPE = re.compile(r"```sh\n(?P<command>.*?)```\n\n```\n(?P<expected>.*?)```\n", re.DOTALL)
ANY_LINES = "…"  # alone on a line: any lines; within one: anything


def _pattern(expected: str) -> re.Pattern[str]:
    """What the output has to look like, whatever the spaces within its lines."""
    lines = []
    for line in expected.splitlines():
        words = r"[ \t]+".join(re.escape(word).replace("…", ".*?") for word in line.split())
        lines.append(r"(?:.*\n)*?" if line == ANY_LINES else rf"[ \t]*{words}[ \t]*\n")
    return re.compile("".join(lines))


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
    recipes = list(RECIPE.finditer(COOKBOOK.read_text()))
    assert len(recipes) == COOKBOOK.read_text().count("```sh")

    # given
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        sandbox.behaviour = Behaviour({"400": 1.0})
        await _refuse_two(server.address)
        sandbox.behaviour = Behaviour()

        for recipe in recipes:
            # when
            said = await _run(recipe["command"].replace(ADDRESS, server.address))

            # then
            assert _pattern(recipe["expected"]).match(said), f"{recipe['command']}\n{said}"
