"""The sender in processes of its own: relay workers, each with its share of the events in flight.

Only the server owns the outbox and decides; a worker maps and POSTs the events that it is handed. A worker that exits
is replaced, and the events that it held go back to the relay, which sends them again.
"""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from service.clock import Clock
from service.mapping.mapping import Mapping
from service.outbox.base import Stored
from service.pointillist.http import BODY_TIME, SUCCESS
from service.relay.sender import SenderHost
from service.relay.worker_protocol import Order, Outcome, SetUp, frame, read_frame

STUCK_TIME = 10.0  # seconds beyond the request timeout after which a worker that has not answered is stuck
STUCK_CHECK_INTERVAL = 1.0  # seconds between checks for one
START_TIME = 60.0  # seconds from the start of a worker until it must be ready
START_INTERVAL = 2.0  # seconds between two starts of one worker, so that one that cannot work does not take a core
END_TIME = 2.0  # seconds that a worker has to exit once its end of the pair is closed
SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""Sent by a terminal or a service manager to all processes of a service; only the server handles them."""

UNEXPECTED = "an unexpected error of this service"

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Worker:
    """One process, and the events that it holds."""

    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    mapping: Mapping | None = None
    """The mapping that it was last sent."""
    token: str | None = None
    held: dict[int, tuple[Stored, float]] = field(default_factory=dict)
    """Events in flight, by number in the order handed over, with the steady time of that."""

    def send(self, order: Order | SetUp) -> None:
        """Send a frame; the limit of events in flight bounds the bytes that wait to be written.

        Nothing is sent to a worker that has exited: the events that it holds go back to the relay.
        """
        if not self.writer.is_closing():  # else uvloop would raise
            self.writer.write(frame(order))


class WorkerPool:
    """Sends events through relay workers."""

    def __init__(
        self, count: int, set_up: SetUp, *, mapping: Callable[[], Mapping], token: Callable[[], str], clock: Clock
    ) -> None:
        """Create the pool; the processes start with `serve`.

        Args:
            count: number of processes.
            set_up: the first frame of each.
            mapping: returns the mapping in force.
            token: returns the API token in force.
            clock: measures the POSTs.
        """
        self._count = count
        self._set_up = set_up
        self._mapping = mapping
        self._token = token
        self._clock = clock
        self._workers: list[_Worker] = []  # that are ready
        self._slots: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._in_flight = 0
        self._answered = asyncio.Event()
        self._checked_at = float("-inf")
        self._stopping = False
        self._host: SenderHost
        self.restarts = 0
        """Workers that were replaced."""

    @property
    def in_flight(self) -> int:
        """Events in flight."""
        return self._in_flight

    @property
    def is_able(self) -> bool:
        """True while there is a worker, or the first ones are starting."""
        return bool(self._workers) or not self.restarts

    @property
    def alive(self) -> int:
        """Workers that are ready."""
        return len(self._workers)

    def serve(self, host: SenderHost) -> None:
        """Start the processes, and send for this host. See Sender.serve."""
        self._host = host
        self._slots = [asyncio.create_task(self._keep_one()) for _ in range(self._count)]

    def wake(self) -> None:
        """Hand out as many events as the limit allows, to each worker as many as to any other."""
        self._end_stuck()
        allowed = 0 if self._stopping or not self._workers else self._host.limit() - self._in_flight
        if allowed <= 0:
            return
        events = self._host.take(allowed)
        if not events:
            return
        share = -(-(self._in_flight + len(events)) // len(self._workers))
        given = 0
        for worker in sorted(self._workers, key=lambda worker: len(worker.held)):
            more = events[given : given + share - len(worker.held)] if share > len(worker.held) else []
            given += len(more)
            if more:
                self._hand_over(worker, more)

    def give_back(self) -> list[Stored]:
        """Return nothing: a worker POSTs each event as soon as it has it. See Sender.give_back."""
        return []

    async def stop(self, grace: float) -> None:
        """Wait for POSTs in flight, then end the processes; a second call does nothing. See Sender.stop."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace):
                while self._in_flight:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            log.info("POSTs in flight abandoned; their events are left to the next start", events=self._in_flight)
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    def _hand_over(self, worker: _Worker, events: Sequence[Stored]) -> None:
        mapping, token = self._mapping(), self._token()
        if mapping is not worker.mapping:
            worker.send(("mapping", mapping.describe()))
            worker.mapping = mapping
        if token != worker.token:
            worker.send(("token", token))
            worker.token = token
        now = self._clock.steady()
        for stored in events:
            self._host.sending(stored, now)
        numbered = list(zip(self._numbers, events, strict=False))  # an id may come again, in a stream created again
        worker.held.update((number, (stored, now)) for number, stored in numbered)
        self._in_flight += len(events)
        worker.send(("events", [(number, *stored[1:4]) for number, stored in numbered]))

    # -- processes

    async def _keep_one(self) -> None:
        """Keep one worker running, until cancelled."""
        time = asyncio.get_running_loop().time
        while not self._stopping:
            next_start = time() + START_INTERVAL
            try:
                await self._run_one()
            except OSError as error:
                log.error("relay worker could not be started", why=str(error))  # noqa: TRY400  no error of ours
            except Exception:
                log.exception("unexpected error; the relay worker is replaced")
            self.restarts += 1
            await asyncio.sleep(next_start - time())

    async def _run_one(self) -> None:
        """Start a worker and handle its answers until it exits or this is cancelled.

        Raises:
            OSError: the system starts no further process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                worker = _Worker(_start(theirs.fileno()), writer)
            except OSError:
                writer.transport.abort()
                raise
        try:
            worker.send(self._set_up)
            async with asyncio.timeout(START_TIME):
                await read_frame(reader)
            self._workers.append(worker)
            self._host.rested()
            while True:
                self._handle_outcomes(worker, await read_frame(reader))
        except (EOFError, TimeoutError):
            pass
        finally:
            if worker in self._workers:
                self._workers.remove(worker)
            writer.transport.abort()  # to close it would wait until a stuck worker has read all that was written
            code = await asyncio.to_thread(_end, worker.process)
            self._abandon(worker, code)

    def _handle_outcomes(self, worker: _Worker, outcomes: Sequence[Outcome]) -> None:
        """Report outcomes to the host, and hand out as many other events."""
        now = self._clock.steady()
        for number, outcome in outcomes:
            stored, handed_over_at = worker.held.pop(number)
            try:
                if outcome is None:
                    self._host.failed(stored, UNEXPECTED)
                elif isinstance(outcome, str):
                    self._host.unreadable(stored)
                else:
                    answer = SUCCESS[outcome - 200] if isinstance(outcome, int) else outcome
                    self._host.answered(stored, answer, handed_over_at, now)
            except Exception:
                log.exception("unexpected error; the event is kept and tried again", message_id=stored.message_id)
                self._host.failed(stored, UNEXPECTED)
            finally:
                self._in_flight -= 1
        self._answered.set()
        self.wake()
        self._host.rested()

    def _abandon(self, worker: _Worker, code: int) -> None:
        """Report the events that a worker held when it exited as lost."""
        self._in_flight -= len(worker.held)
        self._answered.set()
        if self._stopping:
            return
        log.warning(
            "relay worker exited; starting another",
            process=worker.process.pid,
            exit_code=code,
            events=len(worker.held),
        )
        for stored, _ in worker.held.values():
            self._host.lost(stored, "the relay worker that was sending it exited")
        self._host.rested()

    def _end_stuck(self) -> None:
        """Kill a worker that has not answered for longer than any POST can take."""
        now = self._clock.steady()
        since = now - self._checked_at
        if since < STUCK_CHECK_INTERVAL:
            return
        self._checked_at = now
        if since > STUCK_TIME:
            return  # this process was suspended, and answers may wait to be read
        too_old = now - self._set_up.timeout - BODY_TIME - STUCK_TIME
        for worker in self._workers:
            if worker.held and next(iter(worker.held.values()))[1] < too_old and worker.process.poll() is None:
                log.warning(
                    "relay worker does not answer; killing it", process=worker.process.pid, events=len(worker.held)
                )
                worker.process.kill()


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a worker with its end of the pair.

    Popen replaces the new process by another program at once, with nothing of ours run in between: a fork that lives
    on would share gRPC's threads and locks. Settings reach it through the pair alone. It finds its modules where this
    process does, and not in whatever folder that was started in. The signals are blocked from its first moment on.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POINTILLIST_")}
    environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603  the arguments are ours
            [sys.executable, "-P", "-m", "service.relay.worker", str(descriptor)],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait until a worker exits, or kill it; return its exit code."""
    try:
        return process.wait(END_TIME)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
