"""Replicas and the nats-servers under them, killed one at a time while clients send; and what the oracle says then.

Now and then one is not killed but stopped for a while, as a machine without memory or a network without a route does
it: its connections stay, and when it goes on it believes that what was leased to it still is.
"""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from pointillist_destination.v1 import event_service_pb2
from service.outbox.jetstream.streams import MIN_ACK_WAIT, Plan
from service.sandbox.server import Behaviour, Sandbox
from tests.acceptance.crashes import DRAIN_DEADLINE, connected, draw_behaviour, send_one
from tests.acceptance.oracle import Events, Evidence, Ledger, Verdict
from tests.acceptance.replica_clients import ReplicaClients
from tests.support.nats_cluster import NatsNodes, Streams, nats_nodes, streams_of
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import until

MAX_SENT = 600  # new events between two kills, and as many while something is away
MAX_TAKEN = 60  # records that Pointillist takes between two kills, about
MAX_LIFE = 1.0  # seconds from the return of what was killed to the next kill
MAX_AWAY = 0.5  # seconds for which what was killed stays away, and longer by what a start takes
NATS_SHARE = 0.4  # of the kills, those of a nats-server
ACK_WAIT = float(MIN_ACK_WAIT)  # seconds after which JetStream gives what a dead relay had to another
MIN_STOPPED = 1.0  # seconds for which a server is stopped
MAX_STOPPED = 1.6 * ACK_WAIT  # seconds
MAX_STREAM_REPLICAS = 3


@dataclass
class NatsCrashRun:
    """Kills replicas and nats-servers while clients send, then lets all recover, and judges.

    Args:
        folder: where the nats-servers keep their files.
        seed: of everything that is drawn; how the processes interleave is not in its hands.
        nodes: how many nats-servers there are.
        roles: those of the replicas; the first accepts, and so does another.
        stop_share: of the kills, those that are a stop instead.
        text_most: see Events.
    """

    folder: Path
    seed: int
    nodes: int
    roles: Sequence[str] = ("all", "all", "all")
    stop_share: float = 0.0
    text_most: int = 60
    kills: Counter[str] = field(default_factory=Counter)
    """By what was killed or stopped."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        events = Events(f"run-{self.seed}", self.text_most)
        self.ledger = Ledger(events, Random(self._random.random()))
        self.evidence = Evidence(events)
        self.clients = ReplicaClients(self.ledger, self._acceptors)
        self._replicas: list[ServerProcess] = []
        self._settings: dict[str, str] = {}

    async def run(self, kills: int, progress: Callable[["NatsCrashRun"], None] = lambda _: None) -> Verdict:
        """Kill so often, then wait until the outbox is empty, see that an event flows, and judge."""
        start = time.monotonic()
        plan = Plan("ORACLE", replicas=min(self.nodes, MAX_STREAM_REPLICAS))
        async with (
            running_sandbox(seed=self.seed) as sandbox,
            nats_nodes(self.folder, self.nodes) as nats,
            streams_of(nats.url, plan) as streams,
            self._running_replicas(sandbox, nats, streams),
        ):
            async with self.clients.sending():
                for number in range(kills):
                    await self._live(sandbox)
                    await self._fell_one(nats, number)
                    self.evidence.take_from(sandbox)
                    self.seconds = time.monotonic() - start
                    progress(self)
            sandbox.behaviour = Behaviour()
            await self._recover(sandbox, streams)
        self.seconds = time.monotonic() - start
        return Verdict(self.ledger, self.evidence)

    @contextlib.asynccontextmanager
    async def _running_replicas(self, sandbox: Sandbox, nats: NatsNodes, streams: Streams) -> AsyncIterator[None]:
        await streams.make(ACK_WAIT)
        self._settings = settings_for(
            nats.url,
            sandbox,
            nats_stream=streams.plan.prefix,
            nats_replicas=str(streams.plan.replicas),
            relay_replicas=str(sum(role != "accept" for role in self.roles)),
        )
        try:
            for role in self.roles:
                self._replicas.append(await ServerProcess.spawn(self._settings, role=role))
            await asyncio.gather(*(replica.serving() for replica in self._replicas))
            yield
        finally:
            await asyncio.gather(*(replica.kill() for replica in self._replicas))

    def _acceptors(self) -> list[ServerProcess]:
        pairs = zip(self.roles, self._replicas, strict=True)
        return [replica for role, replica in pairs if role != "relay" and not replica.is_killed]

    async def _live(self, sandbox: Sandbox) -> None:
        """Let clients send and Pointillist take, up to a moment that is drawn."""
        sandbox.behaviour = draw_behaviour(self._random)
        self.clients.allow(MAX_SENT)
        before, taken_before = len(self.ledger.accepted), sandbox.taken
        accepted, taken = self._random.randrange(MAX_SENT), self._random.randrange(MAX_TAKEN)

        def is_time() -> bool:
            # What Pointillist has taken while its answer is on its way comes again if it is the relay that is killed.
            is_delivering = sandbox.taken - taken_before >= taken and sandbox.in_flight > 0
            return is_delivering or len(self.ledger.accepted) - before >= accepted

        await _until_or_late(is_time, MAX_LIFE)

    async def _fell_one(self, nats: NatsNodes, number: int) -> None:
        """Kill or stop one server, leave it away for a moment, and have it go on.

        However few times there are, the first is the kill of a nats-server, and the second that of a replica.
        """
        self.clients.allow(MAX_SENT)
        is_nats = number == 0 if number < 2 else self._random.random() < NATS_SHARE
        is_stop = number >= 2 and self._random.random() < self.stop_share
        node, place = self._random.choice(nats.nodes), self._random.randrange(len(self.roles))
        self.kills[f"{'nats-servers' if is_nats else 'replicas'} {'stopped' if is_stop else 'killed'}"] += 1
        if is_stop:
            await self._stop(node.process if is_nats else self._replicas[place].process)
            await nats.healthy()
        elif is_nats:
            await nats.kill(node)
            await self._stay_away()
            await nats.start(node)
        else:
            await self._kill_replica(place)

    async def _stop(self, process: subprocess.Popen[bytes] | asyncio.subprocess.Process | None) -> None:
        """Have a process do nothing for a while, of which nobody is told."""
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(MIN_STOPPED, MAX_STOPPED))  # it is the fault, and not a wait for it
        process.send_signal(signal.SIGCONT)

    async def _kill_replica(self, place: int) -> None:
        for replica in self._replicas:
            assert replica.is_running, "a replica ended by itself:\n" + "\n".join(replica.log)
        await self._replicas[place].kill()
        await self._stay_away()
        self._replicas[place] = await ServerProcess.start(self._settings, role=self.roles[place])

    async def _stay_away(self) -> None:
        """Let clients meet what is missing."""
        most = self.ledger.sent + MAX_SENT // 2
        await _until_or_late(lambda: self.ledger.sent >= most, self._random.uniform(0, MAX_AWAY))

    async def _recover(self, sandbox: Sandbox, streams: Streams) -> None:
        """No more faults."""
        await streams.emptied(DRAIN_DEADLINE)
        async with connected(self._replicas[0]) as stub:
            self.ledger.sent += 1
            fresh = self.ledger.sent
            receipt = await send_one(stub, self.ledger.events, fresh, wait_for_delivery=True)
            assert receipt.outcome == event_service_pb2.OUTCOME_DELIVERED
            self.ledger.answered([fresh])
        self.evidence.look_at_dead_letters(await self._replicas[0].dead_letters())
        await asyncio.gather(*(replica.stop() for replica in self._replicas))
        self.evidence.take_from(sandbox)


async def _until_or_late(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds, or so many seconds."""
    with contextlib.suppress(TimeoutError):
        await until(condition, seconds)
