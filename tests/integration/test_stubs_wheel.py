"""The stubs as a distribution of their own: what it says, what it holds, and where it works."""

import asyncio
import os
import re
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import PROJECT
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import running_server

STUBS = PROJECT / "generated"
EXAMPLE = PROJECT / "docs" / "examples" / "python" / "send_events.py"
DEADLINE = 280.0  # seconds for a step that may fetch a package
IMPORTS = """
import sys
from pointillist_destination.v1 import (
    dead_letter_service_pb2_grpc, event_pb2, event_service_pb2, event_service_pb2_grpc, record_pb2
)
assert "Accepts one track message" in event_service_pb2_grpc.EventServiceServicer.Track.__doc__
print(*sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)))
"""


def _project(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return project


async def _run(*command: str | Path, folder: Path) -> str:
    """Run a command to its end and give what it printed.

    Raises:
        AssertionError: it failed, with all it said.
    """
    # Nothing of this tree may help, and neither may what pip asks of its caller.
    environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE):
        said, _ = await process.communicate()
    assert process.returncode == 0, f"{command}:\n{said.decode()}"
    return said.decode()


def test_the_server_requires_the_stubs_of_its_own_version() -> None:
    server, stubs = _project(PROJECT), _project(STUBS)

    assert stubs["version"] == server["version"]
    assert f"pointillist-destination-stubs=={server['version']}" in server["dependencies"]


def test_the_stubs_require_three_libraries_and_nothing_of_the_server() -> None:
    required = {re.split(r"[<>=]", dependency)[0] for dependency in _project(STUBS)["dependencies"]}

    assert required == {"googleapis-common-protos", "grpcio", "protobuf"}


def test_the_oldest_versions_are_those_that_the_generated_code_demands() -> None:
    # given
    folder = STUBS / "pointillist_destination" / "v1"
    services = (folder / "event_service_pb2_grpc.py").read_text()
    messages = (folder / "event_pb2.py").read_text()

    # when
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", services)
    protobuf = re.search(r"# Protobuf Python Version: ([\d.]+)", messages)

    # then
    assert grpcio is not None
    assert protobuf is not None
    assert {f"grpcio>={grpcio[1]},<2", f"protobuf>={protobuf[1]},<8"} < set(_project(STUBS)["dependencies"])


def test_the_wheel_of_the_server_has_no_copy_of_the_stubs() -> None:
    built = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert built == {"packages": ["service"]}


async def test_the_stubs_import_without_the_server_and_have_docstrings(tmp_path: Path) -> None:
    shutil.copytree(STUBS / "pointillist_destination", tmp_path / "pointillist_destination")

    # The folder that it starts in comes first on the path of `-c`.
    imported = (await _run(sys.executable, "-c", IMPORTS, folder=tmp_path)).split()

    assert {"google", "grpc", "pointillist_destination"} < set(imported)
    assert "service" not in imported


# -- in fresh environments, with what pip fetches


async def _wheels(folder: Path, *sources: Path) -> list[Path]:
    """Build wheels of copies, so that nothing is left in the tree."""
    built: list[Path] = []
    for number, source in enumerate(sources):
        copy = folder / f"source-{number}"
        copy.mkdir()
        parts = ("pyproject.toml", "README.md", "service", "pointillist_destination")
        for part in (source / name for name in parts):
            if part.is_dir():
                shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif part.exists():
                shutil.copy(part, copy)
        await _run(
            sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", f"wheel-{number}", copy, folder=folder
        )
        built += (folder / f"wheel-{number}").iterdir()
    return built


async def _environment(folder: Path) -> Path:
    """Make a virtual environment; gives its Python."""
    await _run(sys.executable, "-m", "venv", "environment", folder=folder)
    return folder / "environment" / "bin" / "python"


@pytest.mark.long
@pytest.mark.timeout(DEADLINE * 2)
@pytest.mark.parametrize("age", ["oldest", "newest"])
async def test_the_wheel_works_with_the_oldest_and_the_newest_libraries(tmp_path: Path, age: str) -> None:
    # given
    [wheel] = await _wheels(tmp_path, STUBS)
    pins = [dependency.split(",")[0].replace(">=", "==") for dependency in _project(STUBS)["dependencies"]]
    python = await _environment(tmp_path)

    # when
    await _run(python, "-m", "pip", "install", "-q", wheel, *(pins if age == "oldest" else []), folder=tmp_path)

    # then
    await _run(python, "-m", "pip", "check", folder=tmp_path)
    assert "service" not in (await _run(python, "-W", "error", "-c", IMPORTS, folder=tmp_path)).split()
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        said = await _run(python, EXAMPLE, server.address, PROJECT / "deploy" / "service-config.json", folder=tmp_path)
    assert "batch 1: 99 accepted, 1 refused" in said


@pytest.mark.long
@pytest.mark.timeout(DEADLINE * 2)
async def test_the_wheels_of_the_server_and_of_the_stubs_share_no_file(tmp_path: Path) -> None:
    # given
    stubs_wheel, server_wheel = await _wheels(tmp_path, STUBS, PROJECT)

    # when
    stubs, server = (set(zipfile.ZipFile(wheel).namelist()) for wheel in (stubs_wheel, server_wheel))

    # then
    assert {name.partition("/")[0] for name in stubs} == {
        "pointillist_destination",
        f"pointillist_destination_stubs-{_project(STUBS)['version']}.dist-info",
    }
    assert "pointillist_destination/py.typed" in stubs
    assert "service/mapping/mapping.toml" in server
    assert stubs & server == set()


@pytest.mark.long
@pytest.mark.timeout(DEADLINE * 2)
async def test_the_servers_wheel_has_its_data_and_every_module_that_is_started_by_name(tmp_path: Path) -> None:
    # given the wheel, unpacked beside the libraries of this environment
    [wheel] = await _wheels(tmp_path, PROJECT)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")

    async def run(*words: str) -> str:
        return await _run("env", f"PYTHONPATH={tmp_path / 'site'}", sys.executable, "-P", *words, folder=tmp_path)

    # when, then it is the wheel that is imported
    assert str(tmp_path) in await run("-c", "import service; print(service.__file__)")

    # and its data is there
    assert "event_source" in await run("-m", "service", "mapping", "show")
    for path in ("outbox/sqlite/schema.sql", "outbox/sqlite/schema_4.sql", "cli/demo/data/segment_events.jsonl"):
        assert (tmp_path / "site" / "service" / path).is_file()

    # and so are the modules that workers, health checks and make run start by name
    for module in ("service.probe", "service.relay.worker", "service.cli.demo.__main__"):
        await run("-c", f"import {module}")
