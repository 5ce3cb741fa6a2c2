"""The demonstration: the service at work on this machine only, without Pointillist and its token.

It is the real thing over real sockets: the server, the sandbox in Pointillist's place, and Segment's own
events sent through gRPC. Only the outbox is a temporary one, unless the settings name one.
"""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from pathlib import Path

from pydantic import SecretStr

from service.app import App
from service.cli.client import Target
from service.cli.demo.screen import Screen
from service.cli.input_file import SegmentFile
from service.cli.send.stream import send
from service.config.address import Listen
from service.config.settings import Settings
from service.sandbox.server import Sandbox

EVENTS = "data/segment_events.jsonl"  # in this package; Segment's own libraries made them
BATCH_SIZE = 10  # events; small, so that the stream carries more than one batch
DELIVERY_PATIENCE = 30.0  # seconds for the sandbox, which is on this machine, to have everything
LOOK_INTERVAL = 0.02  # seconds between looks at whether it has
TOKEN = "sandbox"  # noqa: S105  the sandbox's own, which lets nobody in anywhere


async def demonstrate(given: Settings) -> bool:
    """Demonstrate until SIGINT or SIGTERM; returns whether all was delivered that should have been."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    screen = Screen()
    async with AsyncExitStack() as stack:
        sandbox = Sandbox(api_token=TOKEN, on_record=screen.show_record)
        await sandbox.start("127.0.0.1", 0)
        stack.push_async_callback(sandbox.stop)
        kept_outbox = "outbox_url" in given.model_fields_set
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pointillist-destination-"))
        outbox_url = given.outbox_url if kept_outbox else f"sqlite:///{folder}/outbox.db"
        settings = given.model_copy(
            update={"api_token": SecretStr(TOKEN), "api_url": sandbox.url, "outbox_url": outbox_url}
        )
        address = await stack.enter_async_context(_serving(settings, stop))
        if address is None:
            return True
        screen.show_start(str(address), sandbox.url, None if kept_outbox else "a temporary outbox")
        with resources.as_file(resources.files(__package__) / EVENTS) as path:
            delivered = await _send_and_wait(path, str(address), sandbox, screen, stop)
        if not stop.is_set():
            screen.show_next(str(address), str(Listen(*sandbox.address)), settings.metrics_listen)
        await stop.wait()
        return delivered


@asynccontextmanager
async def _serving(settings: Settings, stop: asyncio.Event) -> AsyncIterator[Listen | None]:
    """Run the server; gives its address, or None where it was stopped before it served.

    A server that ends by itself sets `stop`, and its error is raised at the end.
    """
    app = App(settings)
    started = asyncio.Event()
    running = asyncio.create_task(app.run(lambda _: started.set()))
    running.add_done_callback(lambda _: stop.set())
    waiting = [asyncio.create_task(event.wait()) for event in (started, stop)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    try:
        yield app.grpc_listen if started.is_set() else None
    finally:
        app.stop()
        await running


async def _send_and_wait(path: Path, target: str, sandbox: Sandbox, screen: Screen, stop: asyncio.Event) -> bool:
    """Send the events, wait until the sandbox has them, and report each outcome; return False if some are missing."""
    with SegmentFile(str(path)) as messages:
        summary = await send(messages, Target(target), BATCH_SIZE)
        skipped = messages.skipped

    def delivered() -> int:
        return min(summary.accepted, len({record.message_id for record in sandbox.records}))

    loop = asyncio.get_running_loop()
    deadline = loop.time() + DELIVERY_PATIENCE
    while delivered() < summary.accepted and loop.time() < deadline and not stop.is_set():  # noqa: ASYNC110  the sandbox sets no event
        await asyncio.sleep(LOOK_INTERVAL)
    screen.show_outcome(delivered(), summary, skipped)
    return delivered() == summary.accepted
