"""Ends the process where only a restart helps, so that whatever supervises it starts another.

Kubernetes restarts a pod whose liveness fails; systemd, Compose and `docker run --restart` restart what has ended. The
wait is in C and needs no interpreter: it also ends a process whose event loop, or interpreter, is stuck.
"""

import contextlib
import faulthandler
import sys
from collections.abc import Iterator

LIMIT = 60.0  # seconds without a sign of life; an orchestrator's liveness probe should act before


def note_alive() -> None:
    """Give a sign of life; without another within the limit the process ends, with a traceback of each thread.

    The traceback goes to standard error and has no values. Exit code 1.
    """
    assert sys.__stderr__ is not None  # commands open it where it was closed
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)


@contextlib.contextmanager
def ended_at_last() -> Iterator[None]:
    """Await signs of life until the body ends, from the first one on."""
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
