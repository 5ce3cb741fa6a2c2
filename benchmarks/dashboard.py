"""A picture of the dashboard: its queries, asked of a real Prometheus that watched a real server for a while.

    python -m benchmarks.dashboard [FILE.svg]

It needs `prometheus` (Debian has it) and takes a minute and a half. What happens meanwhile: two callers send events,
good ones and others; Pointillist has hiccups, then an outage, then refuses some events; the mapping file is changed
twice, the second time for the worse.
"""

import asyncio
import hashlib
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from benchmarks.dashboard_picture import draw
from pointillist_destination.v1 import event_pb2, event_service_pb2_grpc
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, IdentifyRequest, TrackRequest
from service.mapping import mapping
from service.sandbox.server import Behaviour, Sandbox
from tests.support.events import event, identify, track
from tests.support.monitoring import PROMETHEUS, Series, filled, panels, scraping, silent
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for

Stub: TypeAlias = "event_service_pb2_grpc.EventServiceAsyncStub"

SECONDS = 80.0
INTERVAL = 1  # seconds between two scrapes, and between two points of the picture
RATES_OVER = "5s"
PACE = 0.02  # seconds between two calls
BATCH = 40  # events
CALLERS = ("checkout", "warehouse")
MAPPING = Path(mapping.__file__).with_suffix(".toml")
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "dashboard.svg"


def bearer(caller: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {caller}-token"),)


async def calls(events: Stub) -> None:
    """Checkout's: a duplicate now and then, an event that is not wanted, and one that is wrong."""
    for number in itertools.count():
        given = track(number - 1 if number % 10 == 9 else number)
        given.integrations.update({"All": number % 15 != 14})
        if number % 20 == 19:
            given.event = ""
        with suppress(grpc.aio.AioRpcError):
            await events.Track(TrackRequest(track=given), metadata=bearer("checkout"))
            if number % 4 == 0:
                await events.Identify(IdentifyRequest(identify=identify(number)), metadata=bearer("checkout"))
        await asyncio.sleep(PACE)


async def batches(events: Stub) -> None:
    """The warehouse's, on one stream."""
    stream = events.BatchSend(metadata=bearer("warehouse"))
    for first in itertools.count(1_000_000, BATCH):
        batch: list[event_pb2.Event] = [event(number) for number in range(first, first + BATCH)]
        await stream.write(BatchSendRequest(events=batch))
        await stream.read()
        await asyncio.sleep(1)


def scenes(sandbox: Sandbox, server: ServerProcess, own_mapping: Path) -> list[tuple[float, Callable[[], object]]]:
    """What happens, and after how many seconds."""

    def behave(**answers: float) -> Callable[[], object]:
        def change() -> None:
            sandbox.behaviour = Behaviour({name.strip("_"): weight for name, weight in answers.items()}, delay=0.01)

        return change

    return [
        (0.0, behave(_200=0.93, _503=0.05, drop=0.02)),
        (25.0, behave(_503=1)),
        (38.0, behave(_200=0.97, _422=0.03)),
        (50.0, lambda: server.process.send_signal(signal.SIGHUP)),
        (60.0, lambda: own_mapping.write_text("nonsense")),
    ]


async def watch() -> tuple[list[dict[str, Any]], dict[str, list[Series]]]:
    """The panels, and what their queries came to."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sandbox = Sandbox(api_token=TOKEN, seed=1)
        await sandbox.start("127.0.0.1", 0)
        stack.push_async_callback(sandbox.stop)
        own_mapping, callers = folder / "mapping.toml", folder / "callers.toml"
        shutil.copy(MAPPING, own_mapping)
        digests = {name: hashlib.sha256(f"{name}-token".encode()).hexdigest() for name in CALLERS}
        callers.write_text("".join(f'[callers.{name}]\nsha256 = "{digest}"\n' for name, digest in digests.items()))
        server = await ServerProcess.start(
            settings_for(
                folder / "outbox.db",
                sandbox,
                callers_file=str(callers),
                mapping_file=str(own_mapping),
                retry_max_delay="5s",
            )
        )
        stack.push_async_callback(server.stop)
        prometheus = await stack.enter_async_context(scraping(folder, server.metrics_url, f"{INTERVAL}s"))
        assert not await silent(prometheus, {"up == 1"})
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        events: Stub = event_service_pb2_grpc.EventServiceStub(channel)
        started = time.time()
        tasks = [asyncio.create_task(load(events)) for load in (calls, batches)]
        for after, act in scenes(sandbox, server, own_mapping):
            await asyncio.sleep(started + after - time.time())
            act()
        await asyncio.sleep(started + SECONDS - time.time())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        asked = {target["expr"] for panel in panels() for target in panel["targets"]}
        found = {
            query: await prometheus.query_range(filled(query, RATES_OVER), started, started + SECONDS, INTERVAL)
            for query in asked
        }
        return panels(), found


def main() -> None:
    if PROMETHEUS is None:
        raise SystemExit("prometheus is missing; Debian's prometheus has it")
    shown, found = asyncio.run(watch())
    silent = [query for query, series in found.items() if not any(one.points for one in series)]
    for query in silent:
        print(f"no data: {query}")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    path.write_text(draw(shown, found))
    print(f"{path}: {len(found) - len(silent)} of {len(found)} queries came to numbers")


if __name__ == "__main__":
    main()
