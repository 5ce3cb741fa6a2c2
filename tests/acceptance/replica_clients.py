"""Clients of several replicas: each sends to one until that is killed, and then to another."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc

from pointillist_destination.v1 import event_service_pb2
from tests.acceptance.crashes import BATCHES_AHEAD, MAX_BATCH, Stub, connected, send_one
from tests.acceptance.oracle import Ledger
from tests.support.server_processes import ServerProcess
from tests.support.servers import failed

LONERS = 6  # clients with one event at a time
STREAMS = 2  # clients with batches
MAX_RETRY = 0.5  # seconds that a client lets pass when it is told to try again, at most


class ReplicaClients:
    """Clients that send whatever they are allowed to, and write into a ledger what they were told."""

    def __init__(self, ledger: Ledger, acceptors: Callable[[], Sequence[ServerProcess]]) -> None:
        """Make them; `sending` has them send.

        Args:
            ledger: draws what they send.
            acceptors: gives the replicas that take events now; one at least.
        """
        self._ledger = ledger
        self._acceptors = acceptors
        self._most = 0
        self._more = asyncio.Event()
        self._over = False
        self.refused = 0
        """Calls that were answered UNAVAILABLE by a replica that was not killed."""

    def allow(self, events: int) -> None:
        """Let so many new events be sent from now on."""
        self._most = self._ledger.sent + events
        self._more.set()

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Have them send as long as this lasts; in the end all answers are waited for."""
        async with asyncio.TaskGroup() as tasks:
            for client in (*[self._send_alone] * LONERS, *[self._send_batches] * STREAMS):
                tasks.create_task(self._send(client))
            yield
            self._over = True
            self._more.set()

    async def _send(self, client: Callable[[Stub, ServerProcess], Awaitable[None]]) -> None:
        while not self._over:
            server = self._ledger.random.choice(self._acceptors())
            async with connected(server) as stub:
                await client(stub, server)

    @property
    def _may_send(self) -> bool:
        return self._ledger.sent < self._most and not self._over

    async def _until_may_send(self) -> None:
        """Return once something may be sent, or nothing more is to be."""
        while not self._may_send and not self._over:
            self._more.clear()
            await self._more.wait()

    async def _send_alone(self, stub: Stub, server: ServerProcess) -> None:
        """Send one event after another until the replica is killed."""
        while not self._over and not server.is_killed:
            if not self._may_send:
                await self._until_may_send()
                continue
            number = self._ledger.draw()
            try:
                receipt = await send_one(stub, self._ledger.events, number)
            except grpc.aio.AioRpcError as error:
                self._ledger.lost_sight_of([number])
                if not server.is_killed:
                    await self._back_off(error)
                continue
            assert receipt.message_id == self._ledger.events.message_id(number)
            self._ledger.answered([number], int(receipt.outcome == event_service_pb2.OUTCOME_DUPLICATE))

    async def _back_off(self, error: grpc.aio.AioRpcError) -> None:
        """Do as RetryInfo says, which has to be there, though not for as long."""
        told = failed(error)
        assert told.code is grpc.StatusCode.UNAVAILABLE, error
        assert told.retry_after is not None, error
        self.refused += 1
        await asyncio.sleep(min(told.retry_after, MAX_RETRY))

    async def _send_batches(self, stub: Stub, server: ServerProcess) -> None:
        """Send batches, some ahead of their answers, until the replica is killed: nothing else ends a stream."""
        call = stub.BatchSend()
        pending: deque[list[int]] = deque()
        first = 0
        try:
            while (pending or not self._over) and not server.is_killed:
                while len(pending) < BATCHES_AHEAD and self._may_send:
                    numbers = [self._ledger.draw() for _ in range(self._ledger.random.randint(1, MAX_BATCH))]
                    pending.append(numbers)
                    events = [self._ledger.events.event(number) for number in numbers]
                    sequence = first + len(pending) - 1
                    await call.write(event_service_pb2.BatchSendRequest(sequence=sequence, events=events))
                if not pending:
                    await self._until_may_send()
                    continue
                answer = await call.read()
                assert isinstance(answer, event_service_pb2.BatchSendResponse), "the server ended the stream with an OK"
                assert answer.sequence == first
                assert answer.accepted + answer.duplicates == len(pending[0]), answer
                # A batch whose acknowledgement was lost is put again by the replica itself, and is then a duplicate of
                # its own; so duplicates of events that were sent once are no fault here.
                self._ledger.answered(pending.popleft())
                first += 1
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter is grpc.aio's for a call that has ended
            if not server.is_killed:
                raise
        finally:
            for numbers in pending:
                self._ledger.lost_sight_of(numbers)
