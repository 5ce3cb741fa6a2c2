"""The service under test, a process of its own, as `serve` runs it: `python -m benchmarks.service_child ROLE`.

Its settings are those of its environment. It imports nothing that the service does not: its memory and its start are
measured, too.
"""

import asyncio
import json
import os
import sys

from benchmarks.control import until_end_of_input
from service.app import App
from service.cli.serve import serve
from service.config.role import Role
from service.config.settings import load_settings
from service.telemetry.logs import configure_logging

TASKS: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly


def started(app: App) -> None:
    """Say where it listens, and stop it when standard input ends."""

    async def stop_at_end_of_input() -> None:
        await until_end_of_input()
        app.stop()

    TASKS.add(asyncio.get_running_loop().create_task(stop_at_end_of_input()))
    assert app.grpc_listen is not None
    print(json.dumps({"port": app.grpc_listen.port}), flush=True)


if __name__ == "__main__":
    settings = load_settings(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    serve(settings, started, role=Role(sys.argv[1]))
