"""Clocks that jump and processes that sleep: nothing is lost, given up or sent in a storm for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from service.mapping.mapping_file import load_mapping
from service.outbox.base import Entry
from service.outbox.capacity import Bounds
from service.outbox.deliveries import DeliveryWaiters
from service.outbox.sqlite.outbox import SqliteOutbox
from service.pointillist.answer import Answer
from service.relay.flow import Flow
from service.relay.local_sender import LocalSender
from service.relay.relay import Relay
from service.telemetry.metrics import Metrics
from tests.support.clock import HandClock
from tests.support.events import entries, entry, event
from tests.support.waiting import turns, until

DAY = 86_400.0  # seconds
MAX_AGE = 7 * DAY
RETRY_MAX_DELAY = 300.0  # seconds
JUMPS = [-30 * DAY, -3600.0, 3600.0, 30 * DAY]


@dataclass
class ScriptedPointillist:
    """Gives one answer until it is given another, and notes what it is sent."""

    answer: Answer = field(default_factory=lambda: Answer(200))
    sent: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)

    async def post(self, body: bytes, message_id: str) -> Answer:  # noqa: ARG002  the signature is Pointillist's
        """Answer one POST."""
        self.sent.append(message_id)
        if self.answer.status == 200:
            self.delivered.append(message_id)
        return self.answer

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Delivery:
    """An outbox, and a relay that empties it."""

    clock: HandClock
    outbox: SqliteOutbox
    relay: Relay
    flow: Flow


@asynccontextmanager
async def delivering(folder: Path, clock: HandClock, pointillist: ScriptedPointillist) -> AsyncIterator[Delivery]:
    """Run an outbox and its relay on a clock, as one start of the server does."""
    metrics, mapping = Metrics(), load_mapping(None)
    outbox = SqliteOutbox(
        folder / "outbox.db",
        clock=clock,
        window=DAY,
        window_ids=10_000_000,
        retry_max_delay=RETRY_MAX_DELAY,
        bounds=Bounds(),
    )
    flow = Flow(256, lambda: 0.999, lambda _: None)
    relay = Relay(
        outbox=outbox,
        sender=LocalSender(mapping=lambda: mapping, pointillist=pointillist, clock=clock),
        flow=flow,
        deliveries=DeliveryWaiters(),
        metrics=metrics,
        clock=clock,
        random=lambda: 0.999,
        max_age=MAX_AGE,
        retry_max_delay=RETRY_MAX_DELAY,
        dead_letters_most=1_000_000,
    )
    relaying = asyncio.create_task(relay.run())
    try:
        yield Delivery(clock, outbox, relay, flow)
    finally:
        await relay.stop(1.0)
        await relaying
        await outbox.close()


async def all_settled(delivery: Delivery, count: int, pointillist: ScriptedPointillist) -> None:
    """Wait until so many POSTs are made, what became of them is on disk, and the relay waits for its clock."""
    if count > len(pointillist.sent):
        await delivery.clock.tick_until(lambda: len(pointillist.sent) >= count and not delivery.relay.in_flight)
    await delivery.outbox.flush()
    await turns()  # a flush wakes the relay, which then drops its timer and looks for work
    if delivery.outbox.stats().events:
        await until(lambda: any(not timer.cancelled for timer in delivery.clock.timers), 5.0)
    await turns()


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_wall_clock_that_jumps_makes_no_event_late_or_a_dead_letter(tmp_path: Path, jump: float) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

        # when
        clock.off += jump
        pointillist.answer = Answer(200)
        clock.move(1.0)

        # then
        await clock.tick_until(lambda: len(pointillist.delivered) == 3)
        await delivery.outbox.flush()
        assert delivery.outbox.stats().events == delivery.outbox.stats().dead_letters == 0


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_wall_clock_that_jumps_makes_nothing_be_sent_before_its_time(tmp_path: Path, jump: float) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

        # when
        clock.off += jump
        clock.move(0.0)
        delivery.relay.wake()
        await delivery.outbox.flush()
        await turns()

        # then
        assert len(pointillist.sent) == 3


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_restart_with_another_wall_clock_delivers_what_waited(tmp_path: Path, jump: float) -> None:
    # given
    pointillist, clock = ScriptedPointillist(Answer(503)), HandClock()
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

    # when
    pointillist.answer = Answer(200)
    later = HandClock(clock.now + jump)
    async with delivering(tmp_path, later, pointillist) as delivery:
        await turns()
        later.move(RETRY_MAX_DELAY)

        # then
        await later.tick_until(lambda: len(pointillist.delivered) == 3)
        await delivery.outbox.flush()
        assert delivery.outbox.stats().dead_letters == 0


async def test_a_restart_with_the_clock_set_back_tries_what_waits_once_and_then_backs_off(tmp_path: Path) -> None:
    # given
    pointillist, clock = ScriptedPointillist(Answer(503)), HandClock()
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

    # when
    async with delivering(tmp_path, HandClock(clock.now - 30 * DAY), pointillist) as delivery:
        await all_settled(delivery, 6, pointillist)
        delivery.relay.wake()
        await delivery.outbox.flush()
        await turns()

        # then
        assert len(pointillist.sent) == 6
        assert delivery.outbox.stats().events == 3


@pytest.mark.parametrize("later", [2 * MAX_AGE, 40 * 365 * DAY])
async def test_after_a_restart_events_are_tried_five_times_before_they_are_given_up_for_their_age(
    tmp_path: Path, later: float
) -> None:
    """Their times may be wrong: with a clock that said 1970 at the first start, the jump is one of decades."""
    # given
    pointillist, clock = ScriptedPointillist(Answer(503)), HandClock()
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

    # when
    async with delivering(tmp_path, HandClock(clock.now + later), pointillist) as delivery:
        for tries in range(1, 5):
            await all_settled(delivery, 3 + 3 * tries, pointillist)
            assert (delivery.outbox.stats().events, delivery.outbox.stats().dead_letters) == (3, 0)
            delivery.clock.move(RETRY_MAX_DELAY)

        # then
        await all_settled(delivery, 18, pointillist)
        assert (delivery.outbox.stats().events, delivery.outbox.stats().dead_letters) == (0, 3)


async def test_the_clock_coming_right_makes_no_event_a_dead_letter(tmp_path: Path) -> None:
    # given events that were accepted while the clock was 30 years slow
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(30))
        await all_settled(delivery, 30, pointillist)

        # when
        clock.correction = 30 * 365 * DAY
        clock.move(1.0)
        await all_settled(delivery, 60, pointillist)
        pointillist.answer = Answer(200)
        clock.move(RETRY_MAX_DELAY)

        # then
        await clock.tick_until(lambda: len(pointillist.delivered) == 30)
        await delivery.outbox.flush()
        assert delivery.outbox.stats().dead_letters == 0


async def test_events_are_due_when_the_clock_is_set_back(tmp_path: Path) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

        # when
        pointillist.answer = Answer(200)
        clock.correction = -365 * DAY
        clock.move(RETRY_MAX_DELAY)

        # then
        await clock.tick_until(lambda: len(pointillist.delivered) == 3)


async def test_a_process_that_slept_for_hours_tries_each_waiting_event_once(tmp_path: Path) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(3))
        await all_settled(delivery, 3, pointillist)

        # when
        clock.move(8 * 3600.0)
        await all_settled(delivery, 6, pointillist)
        delivery.relay.wake()
        await delivery.outbox.flush()
        await turns()

        # then
        assert sorted(pointillist.sent[3:]) == ["m-0", "m-1", "m-2"]


async def test_a_process_that_slept_through_an_outage_delivers_everything_when_it_wakes(tmp_path: Path) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put(entries(50))
        await all_settled(delivery, 50, pointillist)

        # when
        pointillist.answer = Answer(200)
        clock.move(3 * DAY)

        # then
        await clock.tick_until(lambda: len(pointillist.delivered) == 50)
        await delivery.outbox.flush()
        assert delivery.outbox.stats().events == delivery.outbox.stats().dead_letters == 0


@pytest.mark.parametrize("year_seconds", [-62_135_596_800, 0, 253_402_300_799])
async def test_an_event_dated_far_away_is_delivered_like_any_other(tmp_path: Path, year_seconds: int) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    payload = event(1, timestamp=Timestamp(seconds=year_seconds)).SerializeToString()
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put([Entry("m-1", payload, round(clock.wall() * 1000))])
        await all_settled(delivery, 1, pointillist)
        assert delivery.outbox.stats().events == 1

        # when
        pointillist.answer = Answer(200)
        clock.move(1.0)

        # then
        await until(lambda: pointillist.delivered == ["m-1"], 5.0)


@pytest.mark.parametrize("accepted_at", [0, 4_000_000_000_000])
async def test_an_event_taken_while_the_wall_clock_was_wrong_has_its_whole_maximum_age(
    tmp_path: Path, accepted_at: int
) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist(Answer(503))
    async with delivering(tmp_path, clock, pointillist) as delivery:
        await delivery.outbox.put([entry(1, accepted_at=accepted_at)])
        await all_settled(delivery, 1, pointillist)

        # when
        clock.move(MAX_AGE - 1.0)
        await all_settled(delivery, 2, pointillist)
        kept = delivery.outbox.stats().events
        clock.move(RETRY_MAX_DELAY)
        await all_settled(delivery, 3, pointillist)

        # then
        assert kept == 1
        assert delivery.outbox.stats().dead_letters == 1


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_repeated_message_id_is_a_duplicate_whatever_the_wall_clock_did(tmp_path: Path, jump: float) -> None:
    # given
    clock, pointillist = HandClock(), ScriptedPointillist()
    async with delivering(tmp_path, clock, pointillist) as delivery:
        first = await delivery.outbox.put([entry(1)])

        # when
        clock.off += jump
        second = await delivery.outbox.put([entry(1, accepted_at=round(clock.wall() * 1000))])

        # then
        assert (first, second) == ([True], [False])
