"""The relay, between a real outbox and a scripted Pointillist; with lanes here, and with workers that POST to it."""

import asyncio
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from pointillist_destination.v1 import event_pb2
from service.clock import SystemClock
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import load_mapping
from service.outbox.base import Entry, Refusal, Replayed
from service.pointillist.answer import Answer, Failure
from service.relay.flow import MAX_REFUSALS, MIN_FIRST_TRIES, Cause, State
from service.relay.outage import FEW
from service.relay.relay import MAX_WINDOW
from tests.support import relays
from tests.support.clock import HandClock
from tests.support.events import entries, entry
from tests.support.nats import NatsServer
from tests.support.outboxes import ALL, Backend, on_jetstream, take
from tests.support.relays import TAKEN, Relaying, Relays, Script
from tests.support.waiting import DEADLINE, turns, until

UNAVAILABLE = Answer(503, body_start="busy")
REFUSED = Answer(400, body_start="no such label")
WRONG_TOKEN = Answer(401, body_start="who are you")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture(params=[0, pytest.param(2, marks=pytest.mark.long)], ids=["lanes", "workers"])
def relaying(request: pytest.FixtureRequest) -> Relays:
    """Has a relay work, with every courier that there is."""
    return partial(relays.relaying, workers=request.param)


def is_getting_through(running: Relaying) -> bool:
    """Return True while the relay gets through to Pointillist."""
    return running.flow.is_getting_through(running.relay._clock.steady())


async def drained(running: Relaying, clock: HandClock | None = None) -> None:
    """Wait until the outbox is empty."""

    def is_empty() -> bool:
        return running.outbox.stats().events == 0

    await (clock.tick_until(is_empty) if clock else until(is_empty))


async def probe(running: Relaying, script: Script, clock: HandClock, seconds: float = 30.0) -> list[str]:
    """Let time pass until the next probe was answered; gives what was sent."""
    before = len(script.posts)
    clock.move(seconds)
    await clock.tick_until(lambda: len(script.posts) > before and running.relay.in_flight == 0)
    return script.posts[before:]


async def test_every_event_is_delivered_once_and_then_gone(relaying: Relays, backend: Backend) -> None:
    script = Script()
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(300))
        await drained(running)
    assert sorted(script.taken) == sorted(one.message_id for one in entries(300))


async def test_events_that_were_waiting_at_the_start_are_delivered(relaying: Relays, backend: Backend) -> None:
    stuck = Script(lambda _: UNAVAILABLE)
    async with relaying(backend, stuck) as running:
        await running.outbox.put(entries(50))
        await until(lambda: stuck.posts)
    script = Script()
    async with relaying(backend, script) as running:
        await drained(running)
    assert sorted(script.taken) == sorted(one.message_id for one in entries(50))


async def test_every_event_of_an_outage_is_delivered_after_it(relaying: Relays, backend: Backend) -> None:
    # given
    script = Script(lambda _: UNAVAILABLE)
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(100))
        await until(lambda: running.flow.state is State.PROBING)
        assert running.flow.cause is Cause.OUTAGE
        assert not is_getting_through(running)

        # when
        script.answer = lambda _: TAKEN

        # then
        await drained(running)
        assert is_getting_through(running)
        assert running.outbox.stats().dead_letters == 0
    assert sorted(script.taken) == sorted(one.message_id for one in entries(100))


@pytest.mark.parametrize("answer", [Answer(500), Answer(429), Answer(failure=Failure.TIMEOUT), Answer(404)])
async def test_an_event_that_never_passes_delays_no_other(relaying: Relays, backend: Backend, answer: Answer) -> None:
    script = Script(lambda message_id: answer if message_id == "m-7" else TAKEN)
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(200))
        await until(lambda: len(script.taken) == 199)
        assert running.outbox.stats().dead_letters == 0


async def test_an_event_that_alone_is_refused_as_by_a_wrong_setup_waits_its_time_between_others(
    relaying: Relays,
    backend: Backend,
) -> None:
    # given a trickle of events, and one that Pointillist always forbids
    clock = HandClock()
    script = Script(lambda message_id: Answer(403, retry_after=60.0) if message_id == "m-0" else TAKEN)
    async with relaying(backend, script, clock=clock) as running:
        await running.outbox.put(entries(2))
        await clock.tick_until(lambda: "m-1" in script.taken)

        # when others come, one after another
        for number in range(2, 20):
            await running.outbox.put([entry(number)])
            await clock.tick_until(lambda: len(script.taken) == number)  # noqa: B023  it is awaited at once

        # then it did not come between them again and again
        assert script.posts.count("m-0") <= 2
        assert is_getting_through(running)


async def test_a_waiting_event_holds_no_lane(relaying: Relays, path: Path) -> None:
    clock = HandClock()
    script = Script(lambda message_id: TAKEN if message_id == "ok" else Answer(503, retry_after=60.0))
    async with relaying(path, script, clock=clock) as running:
        # given events that wait for a minute
        await running.outbox.put([entry(0, message_id="ok"), *entries(5, first=1)])
        await clock.tick_until(lambda: len(script.posts) == 6)
        await clock.tick_until(lambda: running.relay.in_flight == 0)
        await running.outbox.flush()
        await turns()
        assert (running.relay.in_flight, script.in_flight) == (0, 0)

        # when
        script.answer = lambda _: TAKEN
        clock.move(61.0)

        # then
        await drained(running, clock)


async def test_a_backlog_stays_in_the_outbox_and_not_in_memory(relaying: Relays, backend: Backend) -> None:
    script = Script()
    script.gate.clear()
    async with relaying(backend, script, ceiling=16) as running:
        await running.outbox.put(entries(5000))
        await until(lambda: script.in_flight)
        await turns()
        assert len(running.relay._oldest) <= MAX_WINDOW
        assert running.relay.in_flight <= 16

        script.gate.set()
        await drained(running)
        assert script.most_in_flight <= 16
    assert len(set(script.taken)) == len(script.taken) == 5000


async def test_a_wrong_token_loses_nothing_and_one_event_at_a_time_probes_each_time_another(
    relaying: Relays, backend: Backend
) -> None:
    # given
    clock = HandClock()
    script = Script(lambda _: WRONG_TOKEN)
    async with relaying(backend, script, clock=clock) as running:
        await running.outbox.put(entries(30))
        await clock.tick_until(lambda: running.flow.state is State.PROBING)
        await clock.tick_until(lambda: running.relay.in_flight == 0)
        assert running.flow.cause is Cause.SETUP
        assert not is_getting_through(running)

        # when probes go out
        probes: list[str] = []
        script.most_in_flight = 0
        for _ in range(8):
            probes += await probe(running, script, clock)

        # then
        assert script.most_in_flight == 1
        assert len(probes) == len(set(probes)) == 8

        # when it is mended
        script.answer = lambda _: TAKEN
        clock.move(30.0)

        # then
        await drained(running, clock)
        assert is_getting_through(running)
        assert running.outbox.stats().dead_letters == 0
    assert len(set(script.taken)) == 30


async def test_a_relay_that_does_not_flow_leaves_events_to_others(
    relaying: Relays, nats_server: NatsServer, prefix: str
) -> None:
    backend = on_jetstream(nats_server.url, prefix)
    script = Script(lambda _: WRONG_TOKEN)
    async with relaying(backend, script) as running, backend.open(SystemClock()) as other:
        await running.outbox.put(entries(100))
        await until(lambda: running.flow.state is State.PROBING)
        assert len(await take(other, 60)) == 60  # all but what is mapped already, or has just failed


async def test_an_answer_that_comes_at_once_is_heeded_before_the_next_lane_begins(path: Path) -> None:
    class AtOnce(Script):
        async def post(self, body: bytes, message_id: str) -> Answer:  # noqa: ARG002
            self.posts.append(message_id)
            return WRONG_TOKEN

    # given a Pointillist whose answers are there without any wait
    clock, script = HandClock(), AtOnce()
    async with relays.relaying(path, script, clock=clock) as running:
        # when there is more to send than one event
        await running.outbox.put(entries(50))
        await clock.tick_until(lambda: running.flow.state is State.PROBING and running.relay.in_flight == 0)

        # then no more are sent than prove it, and the first probe comes as soon as after any other failure
        assert len(script.posts) == FEW
        assert len(await probe(running, script, clock, seconds=0.5)) == 1


async def test_a_mended_setup_is_tried_at_once(relaying: Relays, backend: Backend) -> None:
    clock = HandClock()
    script = Script(lambda _: WRONG_TOKEN)
    async with relaying(backend, script, clock=clock) as running:
        await running.outbox.put(entries(10))
        await clock.tick_until(lambda: running.flow.state is State.PROBING and running.relay.in_flight == 0)

        script.answer = lambda _: TAKEN
        running.flow.probe_now()
        running.relay.wake()
        await drained(running, clock)


async def test_a_refused_event_becomes_a_dead_letter_and_its_neighbours_are_delivered(
    relaying: Relays, backend: Backend
) -> None:
    script = Script(lambda message_id: REFUSED if message_id in {"m-3", "m-4"} else TAKEN)
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(20))
        await drained(running)
        await running.outbox.flush()
        letters = await running.outbox.dead_letters.list(ALL, after=0, limit=10)
    assert sorted((letter.message_id, letter.refusal, letter.attempts) for letter in letters) == [
        ("m-3", Refusal("400", 400, "no such label"), 1),
        ("m-4", Refusal("400", 400, "no such label"), 1),
    ]
    assert len(script.taken) == 18


async def test_a_first_day_of_refusals_costs_a_hundred_events_and_no_more(relaying: Relays, backend: Backend) -> None:
    # given
    clock = HandClock()
    script = Script(lambda _: REFUSED)
    async with relaying(backend, script, clock=clock) as running:
        await running.outbox.put(entries(300))
        await clock.tick_until(lambda: running.flow.cause is Cause.REFUSALS and running.relay.in_flight == 0)
        for _ in range(3):
            await probe(running, script, clock)
        await running.outbox.flush()
        assert (running.outbox.stats().dead_letters, running.outbox.stats().events) == (MAX_REFUSALS, 200)

        # when
        script.answer = lambda _: TAKEN
        clock.move(30.0)

        # then
        await drained(running, clock)
    assert len(set(script.taken)) == 200


async def test_an_event_that_fails_for_longer_than_the_maximum_age_becomes_a_dead_letter(
    relaying: Relays, backend: Backend
) -> None:
    clock = HandClock()
    script = Script(lambda message_id: UNAVAILABLE if message_id == "m-1" else TAKEN)
    async with relaying(backend, script, clock=clock, max_age=3600.0) as running:
        # given
        await running.outbox.put(entries(3))
        await clock.tick_until(lambda: len(script.taken) == 2)
        script.gate.clear()
        await clock.tick_until(lambda: script.in_flight)
        assert running.outbox.stats().dead_letters == 0

        # when
        clock.move(3601.0)
        script.gate.set()

        # then
        await drained(running, clock)
        [letter] = await running.outbox.dead_letters.list(ALL, after=0, limit=10)
    assert (letter.message_id, letter.refusal) == ("m-1", Refusal("max_age", 503, "503: busy"))


async def test_a_wrong_setup_makes_no_event_too_old(relaying: Relays, backend: Backend) -> None:
    clock = HandClock()
    script = Script(lambda _: WRONG_TOKEN)
    async with relaying(backend, script, clock=clock, max_age=60.0) as running:
        await running.outbox.put(entries(5))
        await clock.tick_until(lambda: running.flow.state is State.PROBING and running.relay.in_flight == 0)
        for _ in range(8):
            await probe(running, script, clock, 3600.0)
        await running.outbox.flush()
        assert (running.outbox.stats().dead_letters, running.outbox.stats().events) == (0, 5)


async def test_a_relay_without_room_for_dead_letters_pauses_and_goes_on_when_there_is_some(
    relaying: Relays, backend: Backend
) -> None:
    # given
    script = Script(lambda message_id: TAKEN if int(message_id[2:]) < 10 else REFUSED)
    async with relaying(backend, script, dead_letters_most=3) as running:
        await running.outbox.put(entries(10))
        await drained(running)
        await running.outbox.put(entries(20, first=10))
        await until(lambda: running.flow.state is State.PAUSED and running.relay.in_flight == 0)
        await running.outbox.flush()
        assert running.flow.cause is Cause.DEAD_LETTERS_FULL
        assert running.outbox.stats().dead_letters == 3
        assert running.outbox.stats().events == 17

        # when
        script.answer = lambda _: TAKEN
        await running.outbox.dead_letters.delete(ALL)

        # then
        await drained(running)
        assert running.flow.state is State.FLOWING


async def test_an_event_on_which_the_mapping_fails_is_kept_and_tried_again(path: Path) -> None:
    clock = HandClock()
    script = Script()
    mapping, is_broken = load_mapping(None), [True]

    class BrokenMapping:
        def encode(self, _event: event_pb2.Event, _accepted_at: int) -> bytes:
            raise ZeroDivisionError

    def broken_at_first() -> Mapping:
        return cast("Mapping", BrokenMapping()) if is_broken[0] else mapping

    # such a mapping cannot be told to a worker: test_workers.py has an event that fails in one
    async with relays.relaying(path, script, clock=clock, mapping=broken_at_first) as running:
        await running.outbox.put(entries(3))
        await turns()
        await running.outbox.flush()
        assert (running.outbox.stats().events, running.outbox.stats().dead_letters, script.posts) == (3, 0, [])

        is_broken[0] = False
        clock.move(61.0)
        await drained(running, clock)
    assert len(script.taken) == 3


@pytest.mark.parametrize("end", [TAKEN, REFUSED], ids=["delivered", "given up"])
async def test_the_posts_that_an_event_needed_are_counted_once_it_is_settled(
    relaying: Relays, path: Path, end: Answer
) -> None:
    # given one that fails twice
    script = Script(lambda _: end if len(script.posts) > 2 else UNAVAILABLE)
    async with relaying(path, script) as running:
        # when
        await running.outbox.put([entry(1)])
        await drained(running)

        # then
        value = running.metrics.registry.get_sample_value
        assert value("pointillist_destination_attempts_count") == 1
        assert value("pointillist_destination_attempts_sum") == 3
        assert value("pointillist_destination_attempts_bucket", {"le": "2.0"}) == 0


async def test_a_replayed_event_is_delivered(relaying: Relays, backend: Backend) -> None:
    script = Script(lambda message_id: REFUSED if message_id == "m-1" else TAKEN)
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(3))
        await until(lambda: running.outbox.stats().dead_letters == 1)
        await running.outbox.flush()
        script.answer = lambda _: TAKEN
        assert await running.outbox.dead_letters.replay(ALL) == Replayed(1, 0)
        await until(lambda: "m-1" in script.taken)


async def test_who_waits_for_a_delivery_hears_of_it(relaying: Relays, backend: Backend) -> None:
    script = Script(lambda message_id: REFUSED if message_id == "m-1" else TAKEN)
    async with relaying(backend, script) as running:
        with running.deliveries.expect("m-0") as delivered, running.deliveries.expect("m-1") as refused:
            await running.outbox.put(entries(2))
            async with asyncio.timeout(DEADLINE):
                assert await delivered is None
                assert await refused == Refusal("400", 400, "no such label")


async def test_stopping_leaves_what_is_in_flight_in_the_outbox(relaying: Relays, backend: Backend) -> None:
    # given
    script = Script()
    script.gate.clear()
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(20))
        await until(lambda: script.in_flight)

        # when
        await running.stop(grace=0.01)

        # then
        assert script.in_flight == 0
        assert running.outbox.stats().events == 20
    again = Script()
    async with relaying(backend, again) as running:
        await drained(running)
    assert sorted(again.taken) == sorted(one.message_id for one in entries(20))


async def test_stopping_lets_what_is_in_flight_end(relaying: Relays, backend: Backend) -> None:
    script = Script()
    script.gate.clear()
    async with relaying(backend, script) as running:
        await running.outbox.put(entries(3))
        await until(lambda: script.in_flight == 3)
        stopping = asyncio.ensure_future(running.stop())
        await turns()
        script.gate.set()
        await stopping
        await running.outbox.flush()
        assert running.outbox.stats().events == 0
    assert sorted(script.posts) == ["m-0", "m-1", "m-2"]


async def test_a_429_holds_everything_for_as_long_as_it_asks(relaying: Relays, path: Path) -> None:
    clock = HandClock()
    script = Script(lambda _: Answer(429, retry_after=20.0))
    async with relaying(path, script, clock=clock) as running:
        await running.outbox.put(entries(MIN_FIRST_TRIES))
        await clock.tick_until(lambda: len(script.posts) == MIN_FIRST_TRIES and running.relay.in_flight == 0)
        before = len(script.posts)
        script.answer = lambda _: TAKEN
        await running.outbox.put([Entry("new", entry(9, message_id="new").payload, 0)])
        clock.move(19.0)
        await turns()
        assert len(script.posts) == before

        clock.move(2.0)
        await drained(running, clock)
