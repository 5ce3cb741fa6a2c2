"""The examples, each in its own language, against a real server.

An example is built in a copy of what it needs, so that nothing is left in the tree. Where a toolchain or its registry
is missing the example is skipped, with the reason.
"""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.paths import PROJECT
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import DEADLINE

EXAMPLES = PROJECT / "docs" / "examples"
BUILD_DEADLINE = 540.0  # seconds; the first build fetches a language's whole library
REGISTRY_SILENT = re.compile(
    r"dial tcp|no such host|ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|Unknown host|Connection refused|i/o timeout"
    r"|Could not transfer artifact|connect timed out"
)
OUTPUT = re.compile(
    r"identify (\S+): OUTCOME_ACCEPTED\n"
    r"track (\S+): OUTCOME_ACCEPTED\n"
    r"batch 1: 99 accepted, 1 refused\n"
    r"event 41 \(\S+-41\) refused: .*\buser_id\b.*\n"
)


async def _run(*command: str, folder: Path, deadline: float, environ: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and give what it said on standard output.

    Raises:
        AssertionError: it failed, with all it said.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(deadline):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, f"{' '.join(command)}:\n{out.decode()}\n{err.decode()}"
    return out.decode()


async def _build(*command: str, folder: Path) -> None:
    """Run a step of a build; it skips the test where a registry cannot be reached."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # buf is beside Python
    try:
        await _run(*command, folder=folder, deadline=BUILD_DEADLINE, environ={"PATH": path})
    except AssertionError as error:
        if silent := REGISTRY_SILENT.search(str(error)):
            pytest.skip(f"{command[0]}'s registry cannot be reached: {silent[0]}")
        raise


async def _sends_and_tells(*command: str, folder: Path, tmp_path: Path) -> None:
    """Run an example against a server, and look at what it says and at what came of its events."""
    # given
    async with (
        running_sandbox() as sandbox,
        running_server(sandbox, tmp_path) as server,
    ):
        # when
        said = await _run(*command, server.address, folder=folder, deadline=DEADLINE)

        # then
        matched = OUTPUT.fullmatch(said)
        assert matched, said
        delivered = await until_taken(sandbox, 101)
        assert set(matched.groups()) < delivered
        assert len(delivered) == 101


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the protos, the service config and one example, laid out as in the tree."""
    for part in ("proto", "deploy"):
        shutil.copytree(PROJECT / part, tmp_path / part)
    ours = shutil.ignore_patterns("gen", "dist", "node_modules", "target", "send_events")
    folder: Path = tmp_path / "docs" / "examples" / request.param
    shutil.copytree(EXAMPLES / request.param, folder, ignore=ours)
    return folder


def _require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")


async def test_the_python_example_sends_and_tells_the_bad_event_by_its_index(tmp_path: Path) -> None:
    await _sends_and_tells(sys.executable, "send_events.py", folder=EXAMPLES / "python", tmp_path=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(BUILD_DEADLINE + DEADLINE)
@pytest.mark.parametrize("copied", ["go"], indirect=True)
async def test_the_go_example_sends_and_tells_the_bad_event_by_its_index(copied: Path, tmp_path: Path) -> None:
    _require("go")
    await _build("go", "mod", "download", folder=copied)
    await _build("buf", "generate", folder=copied)
    await _build("go", "build", "-o", "send_events", ".", folder=copied)
    await _sends_and_tells(str(copied / "send_events"), folder=copied, tmp_path=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(BUILD_DEADLINE + DEADLINE)
@pytest.mark.parametrize("copied", ["typescript"], indirect=True)
async def test_the_typescript_example_sends_and_tells_the_bad_event_by_its_index(copied: Path, tmp_path: Path) -> None:
    _require("node", "npm")
    await _build("npm", "ci", folder=copied)
    await _build("npm", "run", "build", folder=copied)
    await _sends_and_tells("node", "dist/src/send_events.js", folder=copied, tmp_path=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(BUILD_DEADLINE + DEADLINE)
@pytest.mark.parametrize("copied", ["java"], indirect=True)
async def test_the_java_example_sends_and_tells_the_bad_event_by_its_index(copied: Path, tmp_path: Path) -> None:
    _require("java", "mvn")
    await _build("mvn", "-B", "-ntp", "-q", "package", folder=copied)
    await _sends_and_tells(
        "java", "-cp", "target/send-events-1.jar:target/lib/*", "example.SendEvents", folder=copied, tmp_path=tmp_path
    )


@pytest.mark.long
@pytest.mark.timeout(BUILD_DEADLINE)
async def test_buf_makes_code_for_every_language_at_once(tmp_path: Path) -> None:
    # given
    _require("go", "java", "mvn", "npm")
    plugins = tmp_path / "bin"
    for name, group, version in (
        ("protoc", "com.google.protobuf", "protobuf.version"),
        ("protoc-gen-grpc-java", "io.grpc", "grpc.version"),
    ):
        artifact = f"{group}:{name}:${{{version}}}:exe:${{os.detected.classifier}}"
        options = (f"-Dartifact={artifact}", f"-DoutputDirectory={plugins}", "-Dmdep.stripVersion=true")
        await _build("mvn", "-B", "-ntp", "-q", "dependency:copy", *options, folder=EXAMPLES / "java")
        [copied] = plugins.glob(f"{name}-*")
        copied.rename(plugins / name).chmod(0o755)

    # when
    path = os.pathsep.join([str(plugins), str(Path(sys.executable).parent), os.environ["PATH"]])
    await _run("buf", "generate", "-o", str(tmp_path), folder=PROJECT, deadline=BUILD_DEADLINE, environ={"PATH": path})

    # then
    made = {file.name for file in (tmp_path / "build").rglob("*") if file.is_file()}
    assert {
        "event_service.pb.go",
        "event_service_grpc.pb.go",
        "Track.java",
        "EventServiceGrpc.java",
        "event_service_pb.ts",
        "event_service_pb2.py",
        "event_service_pb2.pyi",
    } < made


@pytest.mark.parametrize("lock", ["go/go.sum", "typescript/package-lock.json"])
def test_a_lock_names_no_address_of_a_registry(lock: str) -> None:
    assert "://" not in re.sub(r'"url": "[^"]*"', "", (EXAMPLES / lock).read_text())
