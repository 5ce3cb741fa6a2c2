"""The courier in processes of their own: relay workers, each with its share of what may be under way.

The server alone owns the outbox and decides; a worker maps and POSTs what it is handed. A worker that ends is replaced,
and what it held goes back to the relay, which sends it again.
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
LOOK_INTERVAL = 1.0  # seconds between two looks for one
START_TIME = 60.0  # seconds from the start of a worker until it must have said that it is there
START_INTERVAL = 2.0  # seconds between two starts of one worker, so that one that cannot work does not take a core
END_TIME = 2.0  # seconds that a worker has to end once it is told
SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""What a terminal or a service manager sends to all processes of a service, and only the server obeys."""

FAULT = "an unforeseen error of this service"

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Worker:
    """One process, and what it holds."""

    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    mapping: Mapping | None = None
    """What it was last told to map with."""
    token: str | None = None
    held: dict[int, tuple[Stored, float]] = field(default_factory=dict)
    """What it has not answered, by number in the order handed over, with the steady moment of that."""

    def tell(self, order: Order | SetUp) -> None:
        """Send a frame; how much may be under way bounds how much waits to be written.

        To a worker that has ended nothing is sent: what it holds goes back to the relay.
        """
        if not self.writer.is_closing():  # else uvloop would raise
            self.writer.write(frame(order))


class WorkerPool:
    """Carries events by relay workers."""

    def __init__(
        self, count: int, set_up: SetUp, *, mapping: Callable[[], Mapping], token: Callable[[], str], clock: Clock
    ) -> None:
        """Make it; the processes start with `serve`.

        Args:
            count: how many processes.
            set_up: what each is to work with.
            mapping: gives the mapping in force.
            token: gives the API token in force.
            clock: its time.
        """
        self._count = count
        self._set_up = set_up
        self._mapping = mapping
        self._token = token
        self._clock = clock
        self._workers: list[_Worker] = []  # that have said that they are there
        self._slots: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._in_flight = 0
        self._answered = asyncio.Event()
        self._looked_at = float("-inf")
        self._stopping = False
        self._host: SenderHost
        self.restarts = 0
        """Workers that were replaced."""

    @property
    def in_flight(self) -> int:
        """How many events are under way."""
        return self._in_flight

    @property
    def is_able(self) -> bool:
        """Whether there is a worker, or the first ones are on their way."""
        return bool(self._workers) or not self.restarts

    @property
    def alive(self) -> int:
        """How many workers there are just now."""
        return len(self._workers)

    def serve(self, host: SenderHost) -> None:
        """Start the processes, and work for this relay. See Courier.serve."""
        self._host = host
        self._slots = [asyncio.create_task(self._keep_one()) for _ in range(self._count)]

    def look(self) -> None:
        """Hand out what may be under way, to each worker as much as to any other."""
        self._end_stuck()
        room = 0 if self._stopping or not self._workers else self._host.limit() - self._in_flight
        if room <= 0:
            return
        events = self._host.take(room)
        if not events:
            return
        share = -(-(self._in_flight + len(events)) // len(self._workers))
        given = 0
        for worker in sorted(self._workers, key=lambda worker: len(worker.held)):
            more = events[given : given + share - len(worker.held)] if share > len(worker.held) else []
            given += len(more)
            if more:
                self._hand_over(worker, more)

    async def stop(self, grace: float) -> None:
        """Let what is under way end, then end the processes; a second call does nothing. See Courier.stop."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace):
                while self._in_flight:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            log.info("POSTs under way are left to the next start", events=self._in_flight)
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    def _hand_over(self, worker: _Worker, events: Sequence[Stored]) -> None:
        mapping, token = self._mapping(), self._token()
        if mapping is not worker.mapping:
            worker.tell(("mapping", mapping.describe()))
            worker.mapping = mapping
        if token != worker.token:
            worker.tell(("token", token))
            worker.token = token
        now = self._clock.steady()
        numbered = list(zip(self._numbers, events, strict=False))  # an id may come again, in a stream made anew
        worker.held.update((number, (stored, now)) for number, stored in numbered)
        self._in_flight += len(events)
        worker.tell(("events", [(number, *stored[1:4]) for number, stored in numbered]))

    # -- processes

    async def _keep_one(self) -> None:
        """See that one worker is there, until cancelled."""
        time = asyncio.get_running_loop().time
        while not self._stopping:
            next_start = time() + START_INTERVAL
            try:
                await self._run_one()
            except OSError as error:
                log.error("a relay worker could not be started", why=str(error))  # noqa: TRY400  it is no fault of ours
            except Exception:
                log.exception("unforeseen error; the relay worker is replaced")
            self.restarts += 1
            await asyncio.sleep(next_start - time())

    async def _run_one(self) -> None:
        """Start a worker and take its answers until it ends or this is cancelled.

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
            worker.tell(self._set_up)
            async with asyncio.timeout(START_TIME):
                await read_frame(reader)
            self._workers.append(worker)
            self._host.rested()
            while True:
                self._take_back(worker, await read_frame(reader))
        except (EOFError, TimeoutError):
            pass
        finally:
            if worker in self._workers:
                self._workers.remove(worker)
            writer.transport.abort()  # to close it would wait until a stuck worker has read all that was written
            code = await asyncio.to_thread(_end, worker.process)
            self._let_go(worker, code)

    def _take_back(self, worker: _Worker, outcomes: Sequence[Outcome]) -> None:
        """Tell the relay what came of events, and hand out as many others."""
        now = self._clock.steady()
        for number, came in outcomes:
            stored, handed_over_at = worker.held.pop(number)
            try:
                if came is None:
                    self._host.failed(stored, FAULT)
                else:
                    answer = SUCCESS[came - 200] if isinstance(came, int) else came
                    self._host.answered(stored, answer, handed_over_at, now)
            except Exception:
                log.exception("unforeseen error; the event is kept and tried again", message_id=stored.message_id)
                self._host.failed(stored, FAULT)
            finally:
                self._in_flight -= 1
        self._answered.set()
        self.look()
        self._host.rested()

    def _let_go(self, worker: _Worker, code: int) -> None:
        """Give back what a worker held when it ended."""
        self._in_flight -= len(worker.held)
        self._answered.set()
        if self._stopping:
            return
        log.warning(
            "a relay worker ended; another one takes its place",
            process=worker.process.pid,
            exit_code=code,
            events=len(worker.held),
        )
        for stored, _ in worker.held.values():
            self._host.lost(stored, "the relay worker that carried it ended")
        self._host.rested()

    def _end_stuck(self) -> None:
        """End a worker that has not answered for longer than any POST can take."""
        now = self._clock.steady()
        since = now - self._looked_at
        if since < LOOK_INTERVAL:
            return
        self._looked_at = now
        if since > STUCK_TIME:
            return  # it is this process that stood still, and answers may wait to be read
        too_old = now - self._set_up.timeout - BODY_TIME - STUCK_TIME
        for worker in self._workers:
            if worker.held and next(iter(worker.held.values()))[1] < too_old and worker.process.poll() is None:
                log.warning("a relay worker does not answer", process=worker.process.pid, events=len(worker.held))
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
    """Wait for the end of a worker that was told, or has closed its end; returns its exit code."""
    try:
        return process.wait(END_TIME)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
