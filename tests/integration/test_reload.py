"""A mapping file that changes while the server runs, and SIGHUP."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import orjson
import pytest

from pointillist_destination.v1 import event_service_pb2, event_service_pb2_grpc
from service.config.watched_file import WatchedFile
from service.errors import MappingFileError
from service.mapping.mapping import Mapping
from service.reloader import watch_mapping
from service.sandbox.server import Sandbox
from tests.support.events import event
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE, until

BAD = "event_source = 5\n"


def mapping(source: str) -> str:
    """A mapping file that is told from others by its event source."""
    return f'event_source = "{source}"\n'


def source_of(source: WatchedFile[Mapping]) -> str:
    """The event source of the mapping in force."""
    return source.current().record(event(1), 0).event_source


# -- the source of the mapping


def test_a_changed_file_is_taken_up(tmp_path: Path) -> None:
    # given
    file = tmp_path / "mapping.toml"
    file.write_text(mapping("One"), encoding="utf-8")
    source = watch_mapping(file)
    unchanged = source.has_changed()

    # when
    file.write_text(mapping("Another"), encoding="utf-8")
    changed, taken_up = source.has_changed(), source.reload()

    # then
    assert (unchanged, changed, taken_up) == (False, True, True)
    assert source_of(source) == "Another"
    assert source.problem is None
    assert not source.has_changed()


def test_a_file_swapped_behind_a_link_is_a_changed_one(tmp_path: Path) -> None:
    # given: the way in which Kubernetes mounts a ConfigMap
    for name in ("One", "Two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mapping.toml").write_text(mapping(name), encoding="utf-8")
    (tmp_path / "data").symlink_to("One")
    source = watch_mapping(tmp_path / "data" / "mapping.toml")

    # when
    (tmp_path / "next").symlink_to("Two")
    (tmp_path / "next").rename(tmp_path / "data")

    # then
    assert source.has_changed()
    assert source.reload()
    assert source_of(source) == "Two"


@pytest.mark.parametrize("bad", [BAD, "this is not TOML", "\udcff", None])
def test_a_bad_or_missing_file_leaves_the_old_mapping_in_force(tmp_path: Path, bad: str | None) -> None:
    # given
    file = tmp_path / "mapping.toml"
    file.write_text(mapping("One"), encoding="utf-8")
    source = watch_mapping(file)

    # when
    if bad is None:
        file.unlink()
    else:
        file.write_bytes(bad.encode(errors="surrogateescape"))
    taken_up = source.reload()

    # then
    assert not taken_up
    assert source_of(source) == "One"
    assert source.problem is not None
    assert str(file) in source.problem
    assert not source.has_changed()


def test_a_file_mended_after_a_bad_one_is_taken_up_and_the_problem_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text(mapping("One"), encoding="utf-8")
    source = watch_mapping(file)
    file.write_text(BAD, encoding="utf-8")
    source.reload()

    file.write_text(mapping("Two"), encoding="utf-8")

    assert source.has_changed()
    assert source.reload()
    assert (source_of(source), source.problem) == ("Two", None)


def test_the_built_in_mapping_never_changes() -> None:
    source = watch_mapping(None)

    assert not source.has_changed()
    assert source.reload()
    assert source_of(source) == "Segment"


def test_a_bad_file_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text(BAD, encoding="utf-8")

    with pytest.raises(MappingFileError, match=r"mapping\.toml"):
        watch_mapping(file)


# -- a running server


@dataclass
class Running:
    """A server process with a mapping file of its own, and its sandbox."""

    server: ServerProcess
    sandbox: Sandbox
    file: Path
    channel: grpc.aio.Channel
    number: int = 0

    async def deliver(self) -> str:
        """Have an event delivered; gives the event source with which it came."""
        self.number += 1
        request = event_service_pb2.TrackRequest(
            track=event(self.number).track, options=event_service_pb2.SendOptions(wait_for_delivery=True)
        )
        await event_service_pb2_grpc.EventServiceStub(self.channel).Track(request, timeout=DEADLINE)
        source: str = self.sandbox.records[-1].record["eventSource"]
        return source

    def said(self, text: str) -> list[str]:
        """The lines of its log whose event begins so."""
        return [line for line in self.server.log if orjson.loads(line)["event"].startswith(text)]


@asynccontextmanager
async def serving(folder: Path, workers: str = "0") -> AsyncIterator[Running]:
    """Run a sandbox, and a server process with a mapping file."""
    file = folder / "mapping.toml"
    file.write_text(mapping("One"), encoding="utf-8")
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    try:
        settings = settings_for(folder / "outbox.db", sandbox, mapping_file=str(file), relay_workers=workers)
        server = await ServerProcess.start(settings)
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                yield Running(server, sandbox, file, channel)
            await server.stop()
        finally:
            await server.kill()
    finally:
        await sandbox.stop()


def replace(path: Path, text: str) -> None:
    """Put a file in the place of another at one stroke, so that nobody reads half of it."""
    path.with_suffix(".new").write_text(text, encoding="utf-8")
    path.with_suffix(".new").replace(path)


async def test_a_running_server_takes_up_good_mappings_and_keeps_the_last_one_where_a_new_one_is_bad(
    tmp_path: Path, relay_workers: str
) -> None:
    async with serving(tmp_path, relay_workers) as running:
        sources = [await running.deliver()]

        replace(running.file, mapping("Another"))
        await until(lambda: running.said("mapping reloaded"))
        sources.append(await running.deliver())

        replace(running.file, BAD)
        await until(lambda: running.said("mapping file refused"))
        sources.append(await running.deliver())
        metrics = await running.server.metrics()

        assert sources == ["One", "Another", "Another"]
        assert str(running.file) in running.said("mapping file refused")[0]
        assert metrics["mapping_reloads_total{taken_up}"] == metrics["mapping_reloads_total{refused}"] == 1
        assert len(running.said("mapping ")) == 2


async def test_sighup_has_a_running_server_read_its_mapping_again(tmp_path: Path, relay_workers: str) -> None:
    async with serving(tmp_path, relay_workers) as running:
        # given: a file that is the same one by all that can be seen without reading it
        await running.deliver()

        # when
        running.server.process.send_signal(signal.SIGHUP)
        await until(lambda: running.said("mapping reloaded"))
        replace(running.file, BAD)
        running.server.process.send_signal(signal.SIGHUP)
        await until(lambda: running.said("mapping file refused"))
        source = await running.deliver()

        # then
        assert source == "One"
        assert running.server.is_running


async def test_sighup_has_a_paused_relay_try_at_once(tmp_path: Path, relay_workers: str) -> None:
    async with serving(tmp_path, relay_workers) as running:
        # given: a relay whose next probe is seconds away
        await running.sandbox.stop()
        stub = event_service_pb2_grpc.EventServiceStub(running.channel)
        batch = event_service_pb2.BatchSendRequest(events=[event(number) for number in range(100, 130)])
        [answer] = [answer async for answer in stub.BatchSend(iter([batch]))]
        assert answer.accepted == 30
        await until(lambda: running.said("relay paused"))

        # when
        await running.sandbox.start(*running.sandbox.address)
        running.server.process.send_signal(signal.SIGHUP)

        # then
        async with asyncio.timeout(DEADLINE):
            await until(lambda: running.sandbox.taken == 30)
