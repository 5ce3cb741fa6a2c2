"""Ends the process where only a restart helps, so that whatever supervises it starts another.

Kubernetes restarts a pod whose liveness fails; systemd, Compose and `docker run --restart` restart what has ended. The
wait is in C and needs no interpreter: it also ends a process whose event loop, or interpreter, is stuck.
"""

import faulthandler
import time
from typing import Self

STANDARD_ERROR = 2  # its descriptor, which commands open where it was closed
LIMIT = 60.0  # seconds without a sign of life; an orchestrator's liveness probe should act before
INTERVAL = 1.0  # seconds in which a second sign of life is not needed


class Watchdog:
    """Awaits signs of life within a `with`, from the first one on."""

    def __init__(self) -> None:
        self._noted_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def note_alive(self) -> None:
        """Give a sign of life; without another within the limit the process ends, with a traceback of each thread.

        The traceback goes to standard error and has no values. Exit code 1.
        """
        now = time.monotonic()
        if now - self._noted_at < INTERVAL:
            return
        self._noted_at = now
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=STANDARD_ERROR)
