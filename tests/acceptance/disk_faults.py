"""Clients that send while the disk of the outbox fails and recovers at random, and the server is killed now and then.

Two things go on side by side, each by its own dice: the disk, which refuses writes or syncs, is full, hangs or is slow
for a while; and the lives of the server, each of which ends with SIGKILL, whatever the disk does at that moment, and
starts on the disk as it is. At the end the disk is good, and everything is delivered.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc

from pointillist_destination.v1 import event_service_pb2
from service.outbox.sqlite import opening, outbox, tail
from service.sandbox.behaviour import WITHOUT_ANSWER
from service.sandbox.server import Behaviour, Sandbox
from tests.acceptance.crashes import (
    MAX_STILLBORN,
    STILLBORN_SHARE,
    Stub,
    connected,
    draw_behaviour,
    recover,
    send_batches,
    send_one,
)
from tests.acceptance.oracle import Events, Evidence, Ledger, Repeats, Verdict
from tests.support.faulty_disk import Fault, FaultyDisk, Mode
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import CALLER_GONE, ServerProcess, settings_for
from tests.support.servers import failed
from tests.support.waiting import DEADLINE, turns, until

PATIENT, IMPATIENT, WAITING, INSISTENT, STREAMS = 5, 2, 4, 4, 2  # callers of each kind
PAUSE = 0.02  # seconds between two calls of a caller
STREAM_PAUSE = 0.1  # seconds after each answer of a stream
MAX_RETRY_PAUSE = 0.5  # seconds; the server asks for more, and few calls would meet a fault
IMPATIENCE = (0.02, 0.5)  # seconds, the deadline of an impatient caller
WAIT = (0.5, 10.0)  # seconds, the deadline of a caller that waits for the delivery
START_PAUSE = 0.2  # seconds until a server that could not start is started again

MIN_FAULT = 0.2  # seconds
MAX_ROOM = 256 * 1024  # bytes that a disk that is about to be full still takes
SLOW_SYNC = (0.01, 0.3)  # seconds
UNUSABLE = 2  # the exit code of a server that cannot open its outbox
BAD_AT_START = "outbox "  # in its last line, before the file's name

UNSETTLED = outbox.MAX_UNSETTLED_BYTES // 1024 + outbox.MAX_UNSETTLED  # KiB: their payloads, and an object for each
MAX_GROWTH = UNSETTLED + tail.MAX_BYTES // 1024 + opening.CACHE_SIZE * 1024
"""KiB of memory above that of a server that has served nobody.

The sum of what may be in memory while the disk takes nothing: settlements that are not on disk, the newest events, and
SQLite's pages. Everything else (calls, batches read ahead, events in flight) is small with these few callers.
"""


@dataclass(frozen=True)
class DiskFaultVerdict(Verdict):
    """A Verdict, and what a server has to keep to besides, however its disk behaves."""

    repeats: Repeats
    growth: int
    """KiB of memory, the most at any time above that of a server that has served nobody."""
    misbehaviour: Counter[str]
    """Answers, log lines and ends that a disk that fails does not explain."""

    @property
    def faults(self) -> dict[str, list[Any]]:
        """See Verdict."""
        kinds: dict[str, list[Any]] = {
            "delivered twice without a crash": sorted(self.repeats.within_a_life)[:10],
            "delivered again after they had left the outbox": sorted(self.repeats.of_settled)[:10],
            f"KiB of memory above the bound of {MAX_GROWTH}": [self.growth] if self.growth > MAX_GROWTH else [],
            "misbehaviour": self.misbehaviour.most_common(),
        }
        return super().faults | {kind: found for kind, found in kinds.items() if found}


@dataclass
class DiskFaultRun:
    """Lets the disk of a server fail again and again, kills it now and then, lets both recover, and judges.

    Args:
        outbox: the outbox file.
        seed: of everything that is drawn; how the processes interleave is not in its hands.
        max_fault: seconds that a fault lasts; longer only where no process has met it by then.
        max_pause: seconds between two faults.
        max_life: seconds from the `serving` line of a server to its kill.
    """

    outbox: Path
    seed: int
    max_fault: float = 8.0
    max_pause: float = 4.0
    max_life: float = 20.0
    kills: int = 0
    kills_on_bad_disk: int = 0
    refused_starts: int = 0
    baseline: int = 0
    """KiB of memory of a server that has served nobody."""
    peak: int = 0
    """KiB of memory, the most that any server had."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        events = Events(f"disk-{self.seed}", 60)
        self.ledger = Ledger(events, Random(self._random.random()))
        self.evidence = Evidence(events)
        self.repeats = Repeats()
        self.faults: Counter[str] = Counter()
        """Faults of the disk, by their mode."""
        self.refused: Counter[str] = Counter()
        """Calls that ended with an error as they may, by its reason."""
        self.misbehaviour: Counter[str] = Counter()
        self._owed: list[int] = []  # events whose callers have not stopped asking
        self._has_served = asyncio.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="disk-faults-")
        self.disk = FaultyDisk(self.outbox, Path(self._folder.name))

    async def run(self, faults: int, progress: Callable[["DiskFaultRun"], None] = lambda _: None) -> DiskFaultVerdict:
        """Let the disk fail so many times, then wait until the outbox is empty, see that an event flows, and judge."""
        start = time.monotonic()
        async with running_sandbox(seed=self.seed) as sandbox:
            # A POST that is given up while its answer is on its way is repeated, as it must be: none is, here.
            settings = settings_for(self.outbox, sandbox, request_timeout="60s")
            failing = asyncio.create_task(self._fail(faults))
            try:
                while not failing.done():
                    await self._live(sandbox, settings, failing)
                    self.seconds = time.monotonic() - start
                    progress(self)
                await failing
            finally:
                failing.cancel()
                self.disk.mend()
            sandbox.behaviour = Behaviour()
            self.evidence.look_at_dead_letters(
                await recover(self.ledger, settings, self.disk.environment(), self._owed)
            )
            await self._end_life(sandbox)
        self.seconds = time.monotonic() - start
        self._folder.cleanup()
        return DiskFaultVerdict(self.ledger, self.evidence, self.repeats, self.peak - self.baseline, self.misbehaviour)

    # -- the disk

    async def _fail(self, faults: int) -> None:
        """Let the disk fail so many times, as soon as there is a server."""
        await self._has_served.wait()
        modes: list[Mode] = []
        for _ in range(faults):
            modes = modes or self._random.sample(list(Mode)[1:], len(Mode) - 1)  # each as often as the others
            await asyncio.sleep(self._random.uniform(0, self.max_pause))
            fault, length = self._draw_fault(modes.pop())
            self.faults[fault.mode.name.lower()] += 1
            before = self.disk.met
            self.disk.fail(fault)
            await asyncio.sleep(length)
            await until(lambda before=before: self.disk.met != before)  # type: ignore[misc]
            self.disk.mend()

    def _draw_fault(self, mode: Mode) -> tuple[Fault, float]:
        """A fault of a mode, and the seconds that it lasts."""
        random = self._random
        length = random.uniform(MIN_FAULT, self.max_fault)
        match mode:
            case Mode.FULL:
                return Fault(mode, room=random.choice((0, random.randrange(MAX_ROOM)))), length
            case Mode.HANG:
                return Fault(mode, wait=random.choice((length, random.uniform(0.1, length)))), length
            case Mode.SLOW:
                return Fault(mode, wait=random.uniform(*SLOW_SYNC)), length
        return Fault(mode), length

    # -- the server

    async def _live(self, sandbox: Sandbox, settings: Mapping[str, str], failing: "asyncio.Task[None]") -> None:
        """One life of the server, from its start to the kill, or to an end for want of a disk to start on."""
        drawn = draw_behaviour(self._random)
        weights = {answer: weight for answer, weight in drawn.answers.items() if answer not in WITHOUT_ANSWER}
        sandbox.behaviour = Behaviour(weights, delay=drawn.delay)
        is_stillborn = self._has_served.is_set() and self._random.random() < STILLBORN_SHARE
        server = await ServerProcess.spawn(settings, self.disk.environment())
        try:
            if await self._serves(server, self._random.uniform(0, MAX_STILLBORN) if is_stillborn else DEADLINE):
                self.baseline = self.baseline or server.memory()
                self._has_served.set()
                await self._send_until_killed(server, failing)
            elif not server.is_running:
                await asyncio.sleep(START_PAUSE)
        finally:
            await self._kill(server)
        logged = Counter(f"{line['event']}\n{line.get('exception', '')}".strip() for line in server.errors)
        self.misbehaviour.update(
            {f"logged: {line}": count for line, count in logged.items() if CALLER_GONE not in line}
        )
        await self._end_life(sandbox)

    async def _serves(self, server: ServerProcess, deadline: float) -> bool:
        """Wait until a server serves; return False if it is to be killed first, or ends because its disk is bad."""
        try:
            async with asyncio.timeout(deadline):
                await server.serving()
        except TimeoutError:
            assert deadline < DEADLINE, "the server does not start:\n" + "\n".join(server.log)
            return False
        except AssertionError:
            code = await server.process.wait()
            self.refused_starts += 1
            if code != UNUSABLE or BAD_AT_START not in server.log[-1]:
                self.misbehaviour[f"ended with {code} at its start: {server.log[-1]}"] += 1
            return False
        return True

    async def _send_until_killed(self, server: ServerProcess, failing: "asyncio.Task[None]") -> None:
        life = self._random.uniform(self.max_life / 4, self.max_life)
        async with connected(server) as stub, asyncio.TaskGroup() as callers:
            for _ in range(PATIENT):
                callers.create_task(self._send(stub, server))
            for _ in range(IMPATIENT):
                callers.create_task(self._send(stub, server, IMPATIENCE))
            for _ in range(WAITING):
                callers.create_task(self._send(stub, server, WAIT, wait_for_delivery=True))
            for _ in range(INSISTENT):
                callers.create_task(self._insist(stub, server))
            for _ in range(STREAMS):
                callers.create_task(send_batches(stub, self.ledger, server, sys.maxsize, STREAM_PAUSE))
            await asyncio.wait({failing}, timeout=life)
            assert server.is_running, "the server ended by itself:\n" + "\n".join(server.log)
            await self._kill(server)

    async def _kill(self, server: ServerProcess) -> None:
        if server.is_running:
            self.peak = max(self.peak, server.memory("VmHWM"))
            self.kills += 1
            self.kills_on_bad_disk += not self.disk.is_good
        await server.kill()

    async def _end_life(self, sandbox: Sandbox) -> None:
        """Hold the deliveries of a life that has ended against the outbox that it has left."""
        await turns()
        await until(lambda: sandbox.in_flight == 0)  # POSTs that the process had sent before it ended
        events = self.evidence.events
        delivered = [events.number(taken.message_id) or 0 for taken in sandbox.records]
        pending = {events.number(message_id) or 0 for message_id in await asyncio.to_thread(self._pending)}
        self.repeats.end_life(delivered, pending)
        self.evidence.take_from(sandbox)

    def _pending(self) -> list[str]:
        """The message_ids of the events in the outbox; read from a copy, as a reader would recover the file."""
        copy = Path(self._folder.name) / "copy.db"
        for ending in ("", "-wal"):
            copy.with_name(copy.name + ending).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self.outbox}{ending}", f"{copy}{ending}")
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            return [message_id for (message_id,) in connection.execute("SELECT message_id FROM event")]

    # -- the callers

    async def _send(
        self,
        stub: Stub,
        server: ServerProcess,
        deadline: tuple[float, float] = (DEADLINE, DEADLINE),
        **options: bool,
    ) -> None:
        """Send one event after another until the server is killed; an event that fails may be sent again some day."""
        while not server.is_killed:
            number = self.ledger.draw()
            if not await self._is_taken(stub, server, number, self._random.uniform(*deadline), **options):
                self.ledger.lost_sight_of([number])

    async def _insist(self, stub: Stub, server: ServerProcess) -> None:
        """Send one event after another, each again and again until it is taken, by a later server if need be."""
        while not server.is_killed:
            number = self._owed.pop() if self._owed else self.ledger.draw()
            while not await self._is_taken(stub, server, number, DEADLINE):
                self.ledger.repeated.add(number)
                if server.is_killed:
                    self._owed.append(number)
                    return

    async def _is_taken(self, stub: Stub, server: ServerProcess, number: int, deadline: float, **options: bool) -> bool:
        """Send one event; return True if it is on disk now."""
        pause = PAUSE
        try:
            receipt = await send_one(stub, self.ledger.events, number, deadline=deadline, **options)
        except grpc.aio.AioRpcError as error:
            if server.is_killed:
                return False
            reason, retry_after = self._judge(error, deadline)
            if reason == "REFUSED_BY_POINTILLIST":
                self.ledger.answered([number])
                return True
            pause = min(retry_after, MAX_RETRY_PAUSE)
        else:
            self.ledger.answered([number], int(receipt.outcome == event_service_pb2.OUTCOME_DUPLICATE))
            return True
        finally:
            await asyncio.sleep(pause)
        return False

    def _judge(self, error: grpc.aio.AioRpcError, deadline: float) -> tuple[str, float]:
        """Count an error by its reason; return that, and the seconds after which to try again.

        A disk that fails may cost a caller its patience, or an answer that says when to try again; nothing else.
        """
        failure = failed(error)
        has_details = bool(failure.status.details)
        reason, retry_after = failure.info.reason if has_details else "no details", failure.retry_after or 0.0
        name = f"{error.code().name} {reason}"
        is_own_deadline = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and deadline < DEADLINE
        is_refusal = reason == "REFUSED_BY_POINTILLIST"
        if is_own_deadline or is_refusal or (error.code() is grpc.StatusCode.UNAVAILABLE and retry_after > 0):
            self.refused[name] += 1
        else:
            self.misbehaviour[f"{name}: {error.details()}"] += 1
        return reason, retry_after
