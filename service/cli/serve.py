"""`serve`: one server as a process, with its signals."""

import asyncio
import itertools
import signal
from collections.abc import Callable

import structlog
import uvloop

from service.app import App
from service.config.role import Role
from service.config.settings import Settings
from service.intake.free_memory import given_back
from service.telemetry.descriptors import raise_limit
from service.telemetry.logs import set_log_level
from service.telemetry.standard_error import without_library_output
from service.telemetry.watchdog import Watchdog

log = structlog.get_logger()


def serve(settings: Settings, started: Callable[[App], None] = lambda _: None, *, role: Role = Role.ALL) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the files again, and SIGUSR1 turns debug lines on and off."""
    watchdog = Watchdog()
    other_level = "info" if settings.log_level == "debug" else "debug"
    levels = itertools.cycle((other_level, settings.log_level))

    def change_log_level() -> None:
        level = next(levels)
        set_log_level(level)
        log.info("log level changed", level_now=level)

    async def run() -> None:
        app = App(settings, role, note_alive=watchdog.note_alive)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        loop.add_signal_handler(signal.SIGUSR1, change_log_level)
        await app.run(started)

    raise_limit()
    with given_back(), without_library_output(), watchdog:
        uvloop.run(run())
