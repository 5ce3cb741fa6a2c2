"""The order of the batches of a stream, while the outbox is full or its disk refuses."""

import asyncio
import itertools
import sqlite3
import threading
from pathlib import Path

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest
from service.events.message_id import digest
from service.intake.acceptance import Acceptance
from service.intake.judging import SMALL_BATCH
from service.outbox.capacity import REFUSED_PAUSE, Bounds
from service.outbox.sqlite.outbox import SqliteOutbox
from service.server.batch_send import BatchSend
from service.telemetry.metrics import Metrics
from tests.support.clock import HandClock
from tests.support.events import entry, event
from tests.support.outboxes import opened, refuse_writes
from tests.support.servers import serving
from tests.support.waiting import DEADLINE, turns, until

BATCHES = 200
EVENTS = 5  # per batch
EXPECTED = [f"m-{number}" for number in range(BATCHES * EVENTS)]


def start(batches: BatchSend, numbers: range) -> list["asyncio.Task[list[bool]]"]:
    """Begin to put batches, in this order."""
    return [
        asyncio.create_task(batches._put([entry(EVENTS * number + index) for index in range(EVENTS)], in_bulk=False))
        for number in numbers
    ]


async def take(outbox: SqliteOutbox, limit: int) -> list[str]:
    """Deliver some events, and return their ids."""
    events = await outbox.fetch(limit)
    for stored in events:
        outbox.ack(stored)
    await outbox.flush()
    return [stored.message_id for stored in events]


async def test_batches_are_stored_in_their_order_while_the_outbox_is_full_again_and_again(tmp_path: Path) -> None:
    clock = HandClock()
    async with opened(tmp_path / "outbox.db", clock, bounds=Bounds(events=2 * EVENTS)) as outbox:
        # given
        batches = BatchSend(Acceptance(outbox, Metrics(), clock), asyncio.Event())

        # when batches come at any turn of the loop, also in the one in which capacity is handed on
        puts: list[asyncio.Task[list[bool]]] = []

        async def feed() -> None:
            for number in range(BATCHES):
                puts.extend(start(batches, range(number, number + 1)))
                await turns(1)

        feeding = asyncio.create_task(feed())
        stored: list[str] = []
        while len(stored) < len(EXPECTED):
            stored += await take(outbox, EVENTS)

        # then
        await feeding
        assert await asyncio.gather(*puts) == [[True] * EVENTS] * BATCHES
        assert stored == EXPECTED


async def test_batches_behind_a_refused_commit_keep_their_place(tmp_path: Path) -> None:
    clock = HandClock()
    async with opened(tmp_path / "outbox.db", clock) as outbox:
        batches = BatchSend(Acceptance(outbox, Metrics(), clock), asyncio.Event())

        # given a disk that refuses the first commit, and takes the next one
        execute, refusing, behind = outbox._writer._do, threading.Event(), threading.Event()
        refuse_writes(outbox, refuse=True)

        def heal(work: object) -> None:
            refusing.set()
            behind.wait(DEADLINE)
            execute(work)  # type: ignore[arg-type]
            refuse_writes(outbox, refuse=False)

        outbox._writer._do = heal  # type: ignore[method-assign]

        # when some are in that commit, and others gather behind it
        puts = start(batches, range(1))
        await until(refusing.is_set)
        puts += start(batches, range(1, BATCHES))
        await turns()
        behind.set()
        await until(lambda: outbox.full() is not None)
        clock.move(REFUSED_PAUSE)

        # then
        assert await asyncio.gather(*puts) == [[True] * EVENTS] * BATCHES
        assert (await take(outbox, len(EXPECTED))) == EXPECTED


async def test_small_batches_behind_large_ones_of_their_stream_keep_their_place(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        # given a caller that does not wait for answers, and another that keeps the writer busy with large batches
        sizes = [SMALL_BATCH + 1, 1, SMALL_BATCH, 3 * SMALL_BATCH, 1] * 3
        numbers = itertools.count()
        requests = [BatchSendRequest(events=[event(next(numbers)) for _ in range(size)]) for size in sizes]
        other = BatchSendRequest(events=[event(0, message_id=f"other-{number}") for number in range(2_000)])

        async def send(requests: list[BatchSendRequest]) -> list[int]:
            return [answer.accepted + answer.duplicates async for answer in server.events.BatchSend(iter(requests))]

        # when
        answers, _ = await asyncio.gather(send(requests), send([other] * 5))

        # then
        assert answers == sizes
        with sqlite3.connect(tmp_path / "outbox.db") as file:
            stored = [row[0] for row in file.execute("SELECT digest FROM seen ORDER BY id")]
        wanted = [digest(f"m-{number}") for number in range(sum(sizes))]
        assert [one for one in stored if one in set(wanted)] == wanted
