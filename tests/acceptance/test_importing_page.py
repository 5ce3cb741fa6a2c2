"""docs/importing.md: every command in it, run in order by a shell against a server and a sandbox."""

import asyncio
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.recipes import recipes_of
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

PAGE = PROJECT / "docs" / "importing.md"


def _lines(first: int, last: int) -> list[str]:
    return [
        json.dumps({"type": "track", "userId": "u", "event": "Seen", "properties": {"number": number}})
        for number in range(first, last)
    ]


def _write_files(folder: Path) -> None:
    """The files that the page is about, and the command, which runs from this tree."""
    odd = [
        json.dumps({"type": "track", "userId": "u", "evnt": "Order Completed"}),
        json.dumps({"type": "page", "userId": "u"}),
        json.dumps({"type": "track", "userId": "u", "event": "Kept", "integrations": {"All": False}}),
    ]
    lines = [*_lines(0, 2), *odd, *_lines(2, 96), '{"type": "track", "userId"']
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with gzip.open(folder / "more.jsonl.gz", "wt") as more:
        more.writelines(f"{line}\n" for line in _lines(1000, 1050))
    (folder / "bin").mkdir()
    command = folder / "bin" / "pointillist-destination"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service "$@"\n')
    command.chmod(0o755)


async def _run(command: str, folder: Path, address: str) -> str:
    """Run a command of the page; gives both of its outputs."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("POINTILLIST_")}
    environ = {
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "generated")]),
        "POINTILLIST_GRPC_LISTEN": address,
    }
    process = await asyncio.create_subprocess_shell(
        command,
        cwd=folder,
        env=inherited | environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE):
        out, _ = await process.communicate()
    return out.decode()


async def test_every_command_does_what_the_page_says(tmp_path: Path) -> None:
    # given
    _write_files(tmp_path)
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        for recipe in recipes_of(PAGE):
            if "jq " in recipe.command and shutil.which("jq") is None:
                pytest.skip("jq is not on this machine; what stands before was run")

            # when
            said = await _run(recipe.command, tmp_path, server.address)

            # then
            assert recipe.is_met_by(said), f"{recipe.command}\n{said}"
        await until_taken(sandbox, 96 + 50 + 1)
        assert sandbox.requests == 96 + 50 + 1
