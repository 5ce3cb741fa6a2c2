"""Six hours without Pointillist, and then a backlog: what is sent meanwhile, what comes first after, and the memory.

The outage is run in a process of its own, so that its memory is its own too, on a clock that is moved by hand, so that
six hours take seconds: `python -m tests.acceptance.test_outage EVENTS FOLDER` prints what it saw as JSON.
"""

import asyncio
import json
import random
import re
import subprocess
import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.mapping.mapping_file import load_mapping
from service.outbox.capacity import Bounds
from service.outbox.deliveries import DeliveryWaiters
from service.outbox.sqlite.outbox import SqliteOutbox
from service.pointillist.answer import Answer
from service.relay.flow import Flow, State
from service.relay.local_sender import LocalSender
from service.relay.relay import Relay
from service.telemetry.metrics import Metrics
from tests.support.clock import HandClock
from tests.support.events import entries
from tests.support.paths import PROJECT
from tests.support.waiting import until

OUTAGE = 6 * 3600.0  # seconds
LATENCY = 0.02  # seconds that Pointillist takes for an answer
BATCH = 1_000  # events put at once
FIRST = 1_000  # deliveries after the recovery whose order is looked at
WINDOW = 1_000  # deliveries whose ids are averaged, to see that they rise
CEILING = 256  # events in flight at most
SAMPLE = 500  # deliveries between two looks at the memory
MAX_PROBES = round(OUTAGE / 15.0) + 50  # probes are 15 s apart at least, but for the first few
MIN_PROBES = round(OUTAGE / 30.0)  # and 30 s at most
MAX_MEMORY = 64 * 1024  # KiB above the idle figure


@dataclass
class ScriptedPointillist:
    """Answers 503 until it is mended, each time after `LATENCY`, and notes what it is sent."""

    clock: HandClock
    flow: Flow
    is_down: bool = False
    refused: int = 0
    in_flight: int = 0
    beyond_limit: int = 0
    tried: set[int] = field(default_factory=set)
    delivered: "array[int]" = field(default_factory=lambda: array("q"))

    async def post(self, body: bytes, message_id: str) -> Answer:  # noqa: ARG002  the signature is Pointillist's
        """Answer one POST."""
        self.in_flight += 1
        self.beyond_limit = max(self.beyond_limit, self.in_flight - self.flow.target)
        try:
            answered = asyncio.Event()
            self.clock.call_later(LATENCY, answered.set)
            await answered.wait()
        finally:
            self.in_flight -= 1
        if self.is_down:
            self.refused += 1
            self.tried.add(int(message_id.removeprefix("m-")))
            return Answer(503, body_start="down for maintenance")
        self.delivered.append(int(message_id.removeprefix("m-")))
        return Answer(200)

    async def close(self) -> None:
        """Nothing is open."""


def resident() -> int:
    """KiB of memory that this process has now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])


async def live_through_an_outage(events: int, folder: Path) -> dict[str, Any]:
    """Fill an outbox during an outage, end the outage, drain the outbox; gives what was seen."""
    clock, metrics, jitter = HandClock(), Metrics(), random.Random(7)
    outbox = SqliteOutbox(
        folder / "outbox.db", clock=clock, window=86400, window_ids=10_000_000, retry_max_delay=300, bounds=Bounds()
    )
    flow = Flow(CEILING, jitter.random, lambda _: None)
    pointillist = ScriptedPointillist(clock, flow)
    mapping = load_mapping(None)
    relay = Relay(
        outbox=outbox,
        sender=LocalSender(mapping=lambda: mapping, pointillist=pointillist, clock=clock),
        flow=flow,
        deliveries=DeliveryWaiters(),
        metrics=metrics,
        clock=clock,
        random=jitter.random,
        max_age=7 * 86400,
        retry_max_delay=300,
        dead_letters_most=1_000_000,
    )
    relaying = asyncio.create_task(relay.run())

    async def deliver(count: int) -> None:
        while len(pointillist.delivered) < count:
            clock.move(LATENCY)
            for _ in range(4):
                await asyncio.sleep(0)

    async def pass_time_until(end: float) -> None:
        """Jump from one thing that the clock is asked for to the next."""
        while clock.now < end:
            await until(lambda: any(not timer.cancelled and timer.at > clock.now for timer in clock.timers))
            next_at = min(timer.at for timer in clock.timers if not timer.cancelled and timer.at > clock.now)
            clock.move(min(next_at, end) - clock.now)

    await outbox.put(entries(BATCH))
    await deliver(BATCH)
    await outbox.flush()
    idle = resident()
    pointillist.delivered = array("q")

    pointillist.is_down = True
    for first in range(BATCH, BATCH + events, BATCH):
        await outbox.put(entries(BATCH, first))
    await pass_time_until(clock.now + OUTAGE)
    refused, state = pointillist.refused, flow.state
    memory = [resident()]

    pointillist.is_down, pointillist.beyond_limit = False, 0
    for sampled in range(SAMPLE, events + 1, SAMPLE):
        await deliver(sampled)
        memory.append(resident())
    await outbox.flush()
    clock.move(OUTAGE)  # whatever would be sent a second time has its chance
    await outbox.flush()
    waiting = outbox.stats()
    await relay.stop(0)
    await relaying
    await outbox.close()
    times = Counter(number - BATCH for number in pointillist.delivered)
    # probes take the newest in turn, so that such as were tried in the outage come out of order
    order = [number - BATCH for number in pointillist.delivered if number not in pointillist.tried]
    return {
        "ended_as": state,
        "refused": refused,
        "delivered": len(pointillist.delivered),
        "delivered_once": sum(1 for number in range(events) if times[number] == 1),
        "left": waiting.events + waiting.dead_letters,
        "youngest_of_the_first": sorted(order[:FIRST])[-2],  # the probe that found the end may be the newest event
        "means": [sum(order[start : start + WINDOW]) / WINDOW for start in range(0, len(order) - WINDOW, WINDOW)],
        "beyond_limit": pointillist.beyond_limit,
        "memory_above_idle": max(memory) - idle,
    }


@pytest.fixture(scope="module", params=[20_000, pytest.param(200_000, marks=pytest.mark.long)])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the outage looked like, with the number of events that came during it."""
    events: int = request.param
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.test_outage", str(events), str(tmp_path_factory.mktemp("outage"))],
        cwd=PROJECT,
        check=True,
        stdout=subprocess.PIPE,
        timeout=100,
    )
    return {"events": events, **json.loads(done.stdout)}


def test_every_event_of_an_outage_is_delivered_exactly_once_after_it(seen: dict[str, Any]) -> None:
    assert seen["delivered"] == seen["delivered_once"] == seen["events"]
    assert seen["left"] == 0


def test_during_an_outage_pointillist_is_probed_and_not_stormed(seen: dict[str, Any]) -> None:
    assert seen["ended_as"] == State.PROBING
    assert MIN_PROBES <= seen["refused"] <= MAX_PROBES


def test_after_an_outage_the_oldest_events_are_delivered_first(seen: dict[str, Any]) -> None:
    assert seen["youngest_of_the_first"] < 2 * FIRST


def test_after_an_outage_events_are_delivered_in_about_the_order_of_their_acceptance(seen: dict[str, Any]) -> None:
    # the first window holds those that were tried as probes during the outage
    means = seen["means"][1:]

    assert means == sorted(means)


def test_after_an_outage_no_more_is_in_flight_than_the_flow_allows(seen: dict[str, Any]) -> None:
    assert seen["beyond_limit"] <= 0


def test_memory_stays_near_the_idle_figure_whatever_the_backlog(seen: dict[str, Any]) -> None:
    assert seen["memory_above_idle"] < MAX_MEMORY


if __name__ == "__main__":
    print(json.dumps(asyncio.run(live_through_an_outage(int(sys.argv[1]), Path(sys.argv[2])))))  # noqa: T201
