"""Where an event's microseconds go: each stage of its way by itself, in this process.

A figure is CPU time of all threads of this process, an event, as batches of a hundred come in. What gRPC takes to
read a message is no stage here: a handler that does nothing is measured in the rows `unary` and `batch`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import uvloop

from benchmarks.bare import ACCEPTED_AT
from benchmarks.child import Child
from benchmarks.events import batches
from benchmarks.figures import Figure, Sample
from benchmarks.plan import Plan, url_of
from benchmarks.rows_in import BATCH_SIZE, BATCHES_AHEAD
from benchmarks.rows_out import LANES
from pointillist_destination.v1 import event_pb2
from service.clock import SystemClock
from service.events.batch_frame import read_batch
from service.events.integrations import is_sent
from service.events.validation import violations
from service.mapping.mapping_file import load_mapping
from service.outbox.base import Entry, Stored
from service.outbox.capacity import Bounds
from service.outbox.sqlite.outbox import SqliteOutbox
from service.pointillist.client import Pointillist, connect

Item = TypeVar("Item")

ROW = "stages"
FETCH_SIZE = 128  # events a fetch, about what the relay asks for


class Stopwatch:
    """CPU microseconds an event, by stage."""

    def __init__(self, events: int) -> None:
        self._events = events
        self.found: dict[str, float] = {}
        self._at = 0.0

    def start(self) -> None:
        """Begin a stage."""
        self._at = time.process_time()

    def stop(self, stage: str) -> None:
        """End it."""
        self.found[stage] = (time.process_time() - self._at) / self._events * 1e6


def stages(plan: Plan) -> list[Figure]:
    """CPU of each stage."""
    count = plan.count(100, 2)
    rounds: list[dict[str, float]] = []
    with Child("sink") as sink:
        for index in range(plan.rounds):
            with plan.new_folder() as folder:
                rounds.append(uvloop.run(_way(folder / "outbox.db", url_of(sink), f"{index}-", count)))
    return [
        Figure(ROW, stage, "µs", [Sample(found[stage]) for found in rounds], compare="alone") for stage in rounds[0]
    ]


async def _way(path: Path, url: str, run: str, count: int) -> dict[str, float]:
    """Take events through all stages, one stage after the other."""
    watch = Stopwatch(count * BATCH_SIZE)
    requests = list(batches(run, count, BATCH_SIZE))
    outbox = SqliteOutbox(
        path, clock=SystemClock(), window=86_400.0, window_ids=10_000_000, retry_max_delay=300.0, bounds=Bounds()
    )
    pointillist = connect(
        client="pyreqwest",
        url=url,
        token=lambda: "token",
        timeout=10.0,
        max_connections=LANES,
        ca_file=None,
        proxy=None,
    )
    try:
        batched = _take(requests, watch)
        await _put(outbox, batched, watch)
        stored = await _fetch(outbox, watch)
        bodies = _map(stored, watch)
        await _post(pointillist, stored, bodies, watch)
        await _settle(outbox, stored, watch)
    finally:
        await pointillist.close()
        await outbox.close()
    return watch.found


def _take(requests: list[bytes], watch: Stopwatch) -> list[list[Entry]]:
    watch.start()
    frames = [read_batch(request).events for request in requests]
    parsed = [[(event_pb2.Event.FromString(payload), payload) for payload in frame] for frame in frames]
    watch.stop("parse")
    watch.start()
    entries: list[list[Entry]] = []
    for batch in parsed:
        entries.append([])
        for event, payload in batch:
            message = event.track
            if not violations(message, payload) and is_sent(message.integrations):
                entries[-1].append(Entry(message.message_id, payload, ACCEPTED_AT))
    watch.stop("validate, filter")
    return entries


async def _put(outbox: SqliteOutbox, batched: list[list[Entry]], watch: Stopwatch) -> None:
    async def put(batch: list[Entry]) -> None:
        await outbox.put(batch)

    watch.start()
    await in_lanes(put, batched, BATCHES_AHEAD)
    watch.stop("put, fsynced")


async def _fetch(outbox: SqliteOutbox, watch: Stopwatch) -> list[Stored]:
    stored: list[Stored] = []
    watch.start()
    while fetched := await outbox.fetch(FETCH_SIZE):
        stored += fetched
    watch.stop("fetch")
    return stored


def _map(stored: list[Stored], watch: Stopwatch) -> list[bytes]:
    encode = load_mapping(None).encode
    watch.start()
    events = [event_pb2.Event.FromString(one.payload) for one in stored]
    watch.stop("parse again")
    watch.start()
    bodies = [encode(event, one.accepted_at) for event, one in zip(events, stored, strict=True)]
    watch.stop("map")
    return bodies


async def _post(pointillist: Pointillist, stored: list[Stored], bodies: list[bytes], watch: Stopwatch) -> None:
    async def post(one: tuple[Stored, bytes]) -> None:
        answer = await pointillist.post(one[1], one[0].message_id)
        if answer.status != 200:
            raise RuntimeError(f"the sink gave {answer}")

    watch.start()
    await in_lanes(post, list(zip(stored, bodies, strict=True)), LANES)
    watch.stop("POST")


async def _settle(outbox: SqliteOutbox, stored: list[Stored], watch: Stopwatch) -> None:
    """Settle as the relay does: a commit takes what has gathered since the last one."""
    watch.start()
    for start in range(0, len(stored), FETCH_SIZE):
        for one in stored[start : start + FETCH_SIZE]:
            outbox.ack(one)
        await outbox.flush()
    watch.stop("settle")


async def in_lanes(work: Callable[[Item], Awaitable[None]], items: list[Item], lanes: int) -> None:
    """Work through items, so many at a time."""
    waiting = iter(items)

    async def lane() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(lane() for _ in range(lanes)))
