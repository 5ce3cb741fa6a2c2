"""A relay worker: maps and POSTs the events that the server hands over, and returns the answers.

    python -m service.relay.worker FD     started by worker_pool.py; FD is its end of a socket pair

It holds no file and decides nothing. It exits when the server's end of the pair closes, however the server ended, and
at no signal that a terminal or a service manager sends to all processes of a service: the server starts it with these
blocked. So SIGUSR1 changes nothing here: a worker logs only errors, which every level shows.
"""

import asyncio
import socket
import sys
from collections import deque

import structlog
import uvloop

from service.clock import SystemClock
from service.errors import SettingsError
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import compile_mapping
from service.outbox.base import UNREADABLE, Stored
from service.pointillist.answer import Answer
from service.pointillist.client import connect
from service.relay.local_sender import LocalSender
from service.relay.worker_protocol import Order, Outcome, SetUp, frame, read_frame
from service.telemetry.logs import configure_logging

CANNOT_WORK = 2  # exit code, that of a server whose settings cannot be used

log = structlog.get_logger()


class Worker:
    """One worker process: the host of its sender, on behalf of the server at the other end of the pair."""

    def __init__(self, set_up: SetUp, writer: asyncio.StreamWriter) -> None:
        """Create it from its first frame.

        Raises:
            SettingsError: a file or address that the server used at its start cannot be used any more.
        """
        self._writer = writer
        self._most = set_up.max_connections
        self._token = ""
        self._mapping: Mapping
        self._waiting: deque[Stored] = deque()
        self._outcomes: list[Outcome] = []
        self._pointillist = connect(
            client=set_up.client,
            url=set_up.url,
            token=lambda: self._token,
            timeout=set_up.timeout,
            max_connections=set_up.max_connections,
            ca_file=set_up.ca_file,
            proxy=set_up.proxy,
        )
        self._sender = LocalSender(mapping=lambda: self._mapping, pointillist=self._pointillist, clock=SystemClock())
        self._sender.serve(self)

    def execute(self, order: Order) -> None:
        """Execute one frame."""
        match order:
            case ("mapping", text):
                self._mapping = compile_mapping(text, "the mapping in force")
            case ("token", token):
                self._token = token
            case ("events", parcels):
                self._waiting.extend(Stored(*parcel, 0, 0, None) for parcel in parcels)
                self._sender.wake()

    async def close(self) -> None:
        """Abandon the POSTs in flight."""
        await self._sender.stop(0.0)
        await self._pointillist.close()

    # -- asked and reported by the sender: SenderHost

    def limit(self) -> int:
        """Return the most there can be: the server hands over no more events than may be in flight."""
        return self._most

    def take(self, most: int) -> list[Stored]:
        """Return events that were handed over."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(most, len(waiting)))]

    def sending(self, stored: Stored, now: float) -> None:
        """Do nothing: the server counts a POST when it hands the event over."""

    def answered(self, stored: Stored, answer: Answer, sent_at: float, now: float) -> None:  # noqa: ARG002  see below
        """Return an answer, with all others of this turn of the loop; the server measures the time."""
        status = answer.status
        is_success = status is not None and 200 <= status <= 299  # its status is all there is to an answer then
        self._report((stored.id, status if is_success else answer))

    def failed(self, stored: Stored, why: str) -> None:  # noqa: ARG002  it is in this process's log
        """Report that an event was not POSTed."""
        self._report((stored.id, None))

    def unreadable(self, stored: Stored) -> None:
        """Report an event whose bytes do not parse."""
        self._report((stored.id, UNREADABLE))

    def lost(self, stored: Stored, why: str) -> None:
        """Report that an event was not POSTed; a local sender loses none."""
        self.failed(stored, why)

    def rested(self) -> None:
        """Wait for the next events."""

    def _report(self, outcome: Outcome) -> None:
        if not self._outcomes:
            asyncio.get_running_loop().call_soon(self._write_outcomes)
        self._outcomes.append(outcome)

    def _write_outcomes(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        if not self._writer.is_closing():  # else the server is gone
            self._writer.write(frame(outcomes))


async def work(descriptor: int) -> None:
    """Work until the server's end of the pair closes."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    try:
        set_up: SetUp = await read_frame(reader)
        configure_logging(set_up.log_level, set_up.log_format)
        worker = Worker(set_up, writer)
        writer.write(frame([]))  # it is ready
        try:
            while True:
                worker.execute(await read_frame(reader))
        finally:
            await worker.close()
    except EOFError:
        return


def main() -> None:
    """Work as a process."""
    try:
        uvloop.run(work(int(sys.argv[1])))
    except SettingsError as error:
        log.error("relay worker cannot start", why=str(error))  # noqa: TRY400  a traceback would say no more
        sys.exit(CANNOT_WORK)


if __name__ == "__main__":
    main()
