"""Commands without the extras: those that need none work, the others say what to install."""

import os
from pathlib import Path

import pytest

from tests.support.paths import EVENTS, PROJECT
from tests.support.processes import Ended, end, start

MODULES = ("aiohttp", "nats", "nkeys", "opentelemetry")  # of all extras


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Variables for a process in which no extra is installed."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({MODULES!r}))\n")
    return {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, PROJECT, PROJECT / "generated")))}


async def run(bare: dict[str, str], *arguments: str, module: str = "service", **variables: str) -> Ended:
    given = {f"POINTILLIST_{name.upper()}": value for name, value in variables.items()}
    return await end(await start(*arguments, module=module, environ=bare | given))


async def test_commands_that_need_no_extra_work_without_any(bare: dict[str, str], tmp_path: Path) -> None:
    mapped = await run(bare, "map", str(EVENTS))
    looked = await run(bare, "doctor", api_token="token", outbox_url=f"sqlite:///{tmp_path}/outbox.db")

    assert (mapped.code, len(mapped.out_lines)) == (1, 17)  # the others are no events, or not for Pointillist
    assert looked.code in (0, 1)
    assert "outbox" in looked.out
    assert "Traceback" not in mapped.err + looked.err


NATS = {"api_token": "token", "outbox_url": "nats://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("words", "module", "variables", "said"),
    [
        (["sandbox"], "service", {}, 'the sandbox needs aiohttp: pip install "pointillist-destination[sandbox]"'),
        ([], "service.cli.demo", {}, 'the demonstration needs aiohttp: pip install "pointillist-destination[sandbox]"'),
        (["serve"], "service", NATS, 'an outbox on NATS needs nats: pip install "pointillist-destination[nats]"'),
        (["doctor"], "service", NATS, 'an outbox on NATS needs nats: pip install "pointillist-destination[nats]"'),
    ],
    ids=["sandbox", "demonstration", "serve on NATS", "doctor on NATS"],
)
async def test_a_command_that_needs_an_extra_says_what_to_install(
    bare: dict[str, str], words: list[str], module: str, variables: dict[str, str], said: str
) -> None:
    ended = await run(bare, *words, module=module, **variables)
    assert (ended.code, ended.err_lines[-1]) == (2, f"pointillist-destination: {said}")
    assert "Traceback" not in ended.err
