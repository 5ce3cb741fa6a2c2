"""A server with relay workers, as processes: they die, it dies, all are told to stop, and none of them stays behind."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from service.sandbox.server import Behaviour, Sandbox
from tests.acceptance.test_setup_wrong import NOT_SERVING, SERVING, Server
from tests.support.certificates import OPENSSL, make_authority
from tests.support.processes import PROC, children, is_alive
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.sizes import sized
from tests.support.waiting import until

WORKERS = 2
EVENTS = sized(400, 800)


@dataclass
class Working:
    """A server with workers, and its sandbox."""

    server: Server
    sandbox: Sandbox

    @property
    def process(self) -> ServerProcess:
        """The server's process."""
        return self.server.process

    @property
    def workers(self) -> set[int]:
        """The worker processes that there are."""
        return children(self.process.process.pid)

    async def alive(self) -> float:
        """How many workers the server says that there are."""
        return (await self.process.metrics())["relay_workers"]

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal as a service manager does: to every process of the service."""
        for process in (self.process.process.pid, *self.workers):
            os.kill(process, number)


@asynccontextmanager
async def working(folder: Path, behaviour: Behaviour | None = None, **settings: str) -> AsyncIterator[Working]:
    """Run a server with workers that are there."""
    sandbox = Sandbox(api_token=TOKEN, behaviour=behaviour)
    await sandbox.start("127.0.0.1", 0)
    given = {"relay_workers": str(WORKERS)} | settings
    process = await ServerProcess.start(settings_for(folder / "outbox.db", sandbox, **given))
    try:
        async with grpc.aio.insecure_channel(process.address) as channel:
            running = Working(Server(process, channel), sandbox)
            await process.until_workers(WORKERS)
            yield running
    finally:
        await process.kill()
        await sandbox.stop()


async def gone(processes: set[int]) -> None:
    """Wait until processes have ended."""
    await until(lambda: not any(map(is_alive, processes)))


async def test_workers_open_no_outbox_and_are_told_no_secret_where_others_can_read_it(tmp_path: Path) -> None:
    async with working(tmp_path) as running:
        await running.server.send(20)
        await until(lambda: running.sandbox.taken == 20)
        for worker in running.workers:
            opened = [str(file.readlink()) for file in (PROC / str(worker) / "fd").iterdir()]
            told = (PROC / str(worker) / "cmdline").read_bytes() + (PROC / str(worker) / "environ").read_bytes()

            assert not [file for file in opened if "outbox" in file]
            assert TOKEN.encode() not in told
            assert b"POINTILLIST_" not in told
        await running.process.stop()


async def test_killed_workers_are_replaced_and_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    async with working(tmp_path, Behaviour(delay=0.01), max_concurrency="16") as running:
        # given events that are under way
        await running.server.send(EVENTS)
        await until(lambda: running.sandbox.taken > 100)

        # when each worker in turn is killed
        for worker in running.workers:
            os.kill(worker, signal.SIGKILL)
            await gone({worker})
        await until(lambda: len({taken.message_id for taken in running.sandbox.records}) == EVENTS)
        await running.process.until_workers(WORKERS)
        metrics = await running.process.metrics()
        await running.process.stop()

        # then
        assert metrics["relay_worker_restarts_total"] == WORKERS
        assert metrics["dead_letters"] == 0
        assert running.sandbox.most_in_flight <= 16 + 16, "what died with a worker may still be under way"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
async def test_a_stop_sent_to_all_processes_lets_what_is_in_flight_end_and_leaves_none(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with working(tmp_path, Behaviour(delay=0.5)) as running:
        # given
        workers = running.workers
        await running.server.send(8)
        await until(lambda: running.sandbox.in_flight == 8)

        # when
        running.signal_all(number)
        await asyncio.wait_for(running.process.process.wait(), 30)

        # then
        assert running.process.process.returncode == 0
        await gone(workers)
        assert (running.sandbox.taken, running.sandbox.answers["200"]) == (8, 8)
        assert not [line for line in running.process.log if "relay worker" in line or "Traceback" in line]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.long
async def test_other_signals_sent_to_all_processes_end_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    said = {signal.SIGHUP: "mapping reloaded", signal.SIGUSR1: "log level changed"}
    async with working(tmp_path) as running:
        workers = running.workers

        running.signal_all(number)
        await until(lambda: any(said[number] in line for line in running.process.log))
        await running.server.send(20)
        await until(lambda: running.sandbox.taken == 20)

        assert running.workers == workers
        await running.process.stop()


async def test_a_killed_server_leaves_no_worker_behind(tmp_path: Path) -> None:
    async with working(tmp_path, Behaviour({"hang": 1.0}), request_timeout="1h") as running:
        # given
        workers = running.workers
        await running.server.send(8)
        await until(lambda: running.sandbox.in_flight == 8)

        # when
        await running.process.kill()

        # then
        assert len(workers) == WORKERS
        await gone(workers)


@pytest.mark.skipif(OPENSSL is None, reason="openssl is missing; Debian's openssl has it")
async def test_delivery_stops_serving_while_no_worker_can_be_started_and_goes_on_when_one_can(tmp_path: Path) -> None:
    # given workers that need a file
    certificate = make_authority(tmp_path, "authority").certificate
    async with working(tmp_path, api_ca_file=str(certificate)) as running:
        # when it is taken away, and they end
        hidden = certificate.rename(tmp_path / "hidden.pem")
        for worker in running.workers:
            os.kill(worker, signal.SIGKILL)
        await running.server.becomes("delivery", NOT_SERVING)
        await until(lambda: any("relay worker cannot start" in line for line in running.process.log))

        # then
        assert await running.alive() == 0
        assert await running.server.health("") == SERVING
        await running.server.send(20)
        assert not [line for line in running.process.log if "Traceback" in line]
        assert any(f"POINTILLIST_API_CA_FILE: {certificate}: No such file" in line for line in running.process.log)

        # when it is back
        hidden.rename(certificate)

        # then
        await running.server.becomes("delivery", SERVING)
        await until(lambda: running.sandbox.taken == 20)
        await running.process.stop()
        assert {taken.message_id for taken in running.sandbox.records} == {f"m-{number}" for number in range(20)}
