"""docs/scaling.md: every command in it, run in order, with a real nats-server, a sandbox and two replicas."""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.support.paths import PROJECT
from tests.support.processes import kill, read_until
from tests.support.waiting import DEADLINE

PAGE = (PROJECT / "docs" / "scaling.md").read_text()
CONFIGURATION = re.compile(r"`nats\.conf`:\n\n```\n(.*?)```\n", re.DOTALL)
BLOCK = re.compile(r"```sh\n(?P<command>.*?)```\n(?:\n```\n(?P<expected>.*?)```\n)?", re.DOTALL)
ADDRESS = r"127\.0\.0\.1:\d+"
LISTENS = {
    "nats-server": rf"Listening for client connections on ({ADDRESS})",
    "sandbox": rf"http://({ADDRESS})/event",
    "serve": rf'"address":\s*"({ADDRESS})".*"event":\s*"serving"|"event":\s*"serving".*"address":\s*"({ADDRESS})"',
}
"""By a word of its command: how a program that goes on says where it listens."""


async def _start(command: str, folder: Path) -> asyncio.subprocess.Process:
    """Start a command of the page in a folder, with the settings that stand before it and no others."""
    words = shlex.split(command.replace("\\\n", " "))
    settings = dict(word.split("=", 1) for word in words if re.match(r"POINTILLIST_\w+=", word))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("POINTILLIST_")}
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    return await asyncio.create_subprocess_exec(
        *words[len(settings) :],
        cwd=folder,
        env=environ | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@asynccontextmanager
async def _going_on(command: str, folder: Path) -> AsyncIterator[str]:
    """Run a program that goes on; gives the address on which it listens."""
    (listens,) = [pattern for word, pattern in LISTENS.items() if word in shlex.split(command.replace("\\\n", " "))]
    process = await _start(command, folder)
    try:
        *_, line = await read_until(process.stdout, listens)
        match = re.search(listens, line)
        assert match is not None
        yield next(filter(None, match.groups()))
    finally:
        await kill(process)


def _own_address(command: str) -> str:
    """The address on which a command of the page has its program listen."""
    return str(re.findall(ADDRESS, command)[-1])


def _is_as(expected: str, said: str) -> bool:
    """Whether an output is what the page says, whatever the spaces; `…` stands for anything."""
    lines = [r"\s+".join(re.escape(word).replace("…", ".*") for word in line.split()) for line in expected.splitlines()]
    return re.fullmatch(r"\s*" + r"\s+".join(lines) + r"\s*", said) is not None


async def test_every_command_does_what_the_page_says(tmp_path: Path) -> None:
    # given NATS' configuration as the page has it, on ports of our own
    (configuration,) = CONFIGURATION.findall(PAGE)
    nats_address = _own_address(configuration)
    (tmp_path / "nats.conf").write_text(configuration.replace(nats_address, "127.0.0.1:-1"))
    addresses: dict[str, str] = {}
    ran = 0

    async with AsyncExitStack() as stack:
        for block in BLOCK.finditer(PAGE):
            command = block["command"]
            for named, real in addresses.items():
                command = command.replace(named, real)

            if block["expected"] is None:
                # when a program that goes on is started
                own = nats_address if command.startswith("nats-server") else _own_address(command)
                listening = command.replace(own, "127.0.0.1:0")
                addresses[own] = await stack.enter_async_context(_going_on(listening, tmp_path))
            else:
                # when a command is run to its end, then it says what stands below it
                process = await _start(command, tmp_path)
                async with asyncio.timeout(DEADLINE):
                    out, _ = await process.communicate()
                assert _is_as(block["expected"], out.decode()), f"{command}\n{out.decode()}"
                ran += 1

    assert (len(addresses), ran) == (4, 3)
