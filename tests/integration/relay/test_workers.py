"""Relay workers, as processes: what a relay sees when they work, end, hang, or cannot work.

test_relay.py asks of them what is asked of any courier; tests/acceptance/test_workers.py has them in a whole server.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from service.clock import Clock, SystemClock
from service.mapping.mapping_file import compile_mapping, load_mapping
from service.outbox.base import Entry, Stored
from service.pointillist.answer import Answer
from service.pointillist.http import BODY_TIME
from service.relay.worker_pool import STUCK_TIME, WorkerPool, _Worker
from service.sandbox.server import Behaviour, Sandbox
from tests.support.clock import HandClock
from tests.support.events import ACCEPTED_AT, entries, entry
from tests.support.outboxes import ALL
from tests.support.processes import children, is_alive
from tests.support.relays import REQUEST_TIMEOUT, Relaying, Script, relaying, set_up_for
from tests.support.waiting import DEADLINE, until

BUILT_IN = load_mapping(None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    running = Sandbox()
    await running.start("127.0.0.1", 0)
    yield running
    await running.stop()


def workers_of(running: Relaying) -> list[_Worker]:
    """The workers of a relay that there are."""
    assert isinstance(running.sender, WorkerPool)
    return list(running.sender._workers)


async def drained(running: Relaying) -> None:
    """Wait until the outbox is empty."""
    await until(lambda: running.outbox.stats().events == 0)


@dataclass
class Told:
    """Gives workers their orders by itself, in a relay's place, and keeps what it is told."""

    waiting: deque[Stored] = field(default_factory=deque)
    most: int = 16
    answers: dict[int, Answer] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    unreadables: list[int] = field(default_factory=list)
    losses: list[int] = field(default_factory=list)
    refuses: bool = False
    """Whether it fails on the next answer."""

    def give(self, *numbers: int) -> None:
        """Have these events sent."""
        self.waiting.extend(
            Stored(number, entry(number).message_id, entry(number).payload, ACCEPTED_AT, 0, 0, None)
            for number in numbers
        )

    def limit(self) -> int:
        return self.most

    def take(self, most: int) -> list[Stored]:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    def sending(self, stored: Stored, now: float) -> None:
        """Nothing is counted."""

    def answered(self, stored: Stored, answer: Answer, sent_at: float, now: float) -> None:
        assert sent_at <= now
        if self.refuses:
            self.refuses = False
            raise ZeroDivisionError
        self.answers[stored.id] = answer

    def failed(self, stored: Stored, why: str) -> None:  # noqa: ARG002  the signature is SenderHost's
        self.failures.append(stored.id)

    def unreadable(self, stored: Stored) -> None:
        self.unreadables.append(stored.id)

    def lost(self, stored: Stored, why: str) -> None:  # noqa: ARG002
        self.losses.append(stored.id)

    def rested(self) -> None:
        """Nothing waits to be looked at."""


@asynccontextmanager
async def told(url: str, count: int = 1, clock: Clock | None = None) -> AsyncIterator[tuple[Told, WorkerPool]]:
    """Have workers work without a relay."""
    host = Told()
    workers = WorkerPool(
        count,
        set_up_for(url),
        mapping=lambda: BUILT_IN,
        token=lambda: "token",
        clock=clock or SystemClock(),
    )
    workers.serve(host)
    try:
        yield host, workers
    finally:
        await workers.stop(0.0)


# -- they work


async def test_two_events_that_have_one_id_in_two_streams_are_each_answered(sandbox: Sandbox) -> None:
    async with told(sandbox.url) as (host, workers):
        await until(lambda: workers.alive)
        host.give(1, 2)
        host.waiting[1] = host.waiting[1]._replace(id=1)

        workers.wake()

        await until(lambda: workers.in_flight == 0)
        assert host.answers == {1: Answer(200)}
        assert workers.restarts == 0


async def test_every_event_is_delivered_once_and_all_workers_have_their_share(path: Path) -> None:
    script = Script()
    script.gate.clear()
    async with relaying(path, script, ceiling=16, workers=2) as running:
        # given
        await running.outbox.put(entries(300))
        await until(lambda: script.in_flight == 8)
        shares = [len(worker.held) for worker in workers_of(running)]

        # when
        script.gate.set()
        await drained(running)

        # then
        assert shares == [4, 4]
        assert script.most_in_flight <= 16, "the limit is not shared"
        assert running.relay.in_flight == 0
    assert sorted(script.posts) == sorted(one.message_id for one in entries(300))


async def test_a_new_mapping_and_a_new_token_are_used_from_the_next_event_on(sandbox: Sandbox) -> None:
    # given
    sources, tokens = iter(("One", "One", "Two")), iter(("one", "two", "two"))
    answers = {"one": 401, "two": 200}
    host = Told()
    mappings = {name: compile_mapping(f'event_source = "{name}"', name) for name in ("One", "Two")}
    sandbox._token = b"two"
    workers = WorkerPool(
        1,
        set_up_for(sandbox.url),
        mapping=lambda: mappings[next(sources)],
        token=lambda: next(tokens),
        clock=SystemClock(),
    )
    workers.serve(host)

    # when
    for number in (1, 2, 3):
        host.give(number)
        await until(lambda: workers.alive)
        workers.wake()
        await until(lambda number=number: number in host.answers)  # type: ignore[misc]  # it is bound here
    await workers.stop(1.0)

    # then
    assert [answer.status for answer in host.answers.values()] == [answers["one"], answers["two"], answers["two"]]
    assert [taken.record["eventSource"] for taken in sandbox.records] == ["One", "Two"]


async def test_an_event_that_a_worker_cannot_read_becomes_a_dead_letter_and_harms_no_other(path: Path) -> None:
    script, clock = Script(), HandClock()
    async with relaying(path, script, clock=clock, workers=1) as running:
        await running.outbox.put([Entry("rubbish", b"\xff\xff", ACCEPTED_AT), *entries(3)])
        await until(lambda: len(script.taken) == 3)
        await until(lambda: running.relay.in_flight == 0)
        await running.outbox.flush()
        assert running.outbox.stats().events == 0
        [rubbish] = await running.outbox.dead_letters.list(ALL, after=0, limit=10)
    assert (rubbish.message_id, rubbish.payload, rubbish.refusal.reason) == ("rubbish", b"\xff\xff", "unreadable")
    assert len(script.posts) == 3


async def test_workers_find_their_modules_where_the_server_does(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a folder with another package of our name
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").write_text("raise SystemExit('this is not the service')\n")
    monkeypatch.chdir(tmp_path)

    async with told(sandbox.url) as (_, workers):
        await until(lambda: workers.alive)
        assert workers.restarts == 0


# -- they end


async def test_what_a_killed_worker_held_is_sent_again_and_the_other_one_goes_on(path: Path) -> None:
    # given
    script = Script()
    script.gate.clear()
    async with relaying(path, script, ceiling=16, workers=2) as running:
        await running.outbox.put(entries(200))
        await until(lambda: script.in_flight == 8)
        victim, other = workers_of(running)

        # when
        os.kill(victim.process.pid, signal.SIGKILL)
        await until(lambda: victim not in workers_of(running) and victim.process.poll() is not None)
        script.gate.set()
        await drained(running)

        # then
        await until(lambda: len(workers_of(running)) == 2)
        assert isinstance(running.sender, WorkerPool)
        assert (running.sender.restarts, running.sender.in_flight) == (1, 0)
        assert other in workers_of(running)
        assert running.outbox.stats().dead_letters == 0
    assert set(script.posts) == {one.message_id for one in entries(200)}
    assert len(script.posts) - len(set(script.posts)) == 4, "what it held was posted twice, and nothing else was"


async def test_a_stuck_worker_is_ended_once_it_is_silent_for_longer_than_a_post_can_take(path: Path) -> None:
    # given
    script, clock = Script(), HandClock()
    async with relaying(path, script, clock=clock, workers=2) as running:
        victim, other = workers_of(running)
        os.kill(victim.process.pid, signal.SIGSTOP)
        await running.outbox.put(entries(100))
        await until(lambda: len(victim.held) and not other.held)
        held, end = len(victim.held), clock.now + REQUEST_TIMEOUT + BODY_TIME + STUCK_TIME

        # when it is not long enough
        def looked_until(moment: float) -> bool:
            clock.move(min(1.0, moment - clock.now))
            running.relay.wake()
            return clock.now >= moment

        await until(lambda: looked_until(end - 1.0))
        is_left = is_alive(victim.process.pid)

        # when it is
        await until(lambda: looked_until(end + 2.0))
        await until(lambda: victim not in workers_of(running))
        await clock.tick_until(lambda: running.outbox.stats().events == 0)

        # then
        assert (is_left, is_alive(victim.process.pid)) == (True, False)
        assert held
        assert other in workers_of(running)
    assert len(set(script.taken)) == len(script.posts) == 100


async def test_a_server_that_stood_still_calls_no_worker_stuck(sandbox: Sandbox) -> None:
    # given
    clock = HandClock()
    sandbox.behaviour = Behaviour({"hang": 1.0})
    async with told(sandbox.url, clock=clock) as (host, workers):
        await until(lambda: workers.alive)
        host.give(1)
        workers.wake()
        await until(lambda: sandbox.in_flight)

        # when
        clock.move(REQUEST_TIMEOUT + BODY_TIME + STUCK_TIME + 1.0)
        workers.wake()
        [worker] = workers._workers
        at_first = worker.process.poll()
        clock.move(1.0)
        workers.wake()

        # then
        assert at_first is None
        await until(lambda: worker.process.poll() == -signal.SIGKILL)


def test_a_frame_to_a_worker_that_has_just_ended_is_left_unsent() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass

    async def tell_the_dead() -> None:
        ours, theirs = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        worker = _Worker(ended, writer)
        theirs.close()
        for _ in range(3):
            worker.send(("token", "token"))
            await asyncio.sleep(0)

    uvloop.run(tell_the_dead())  # which raises where asyncio warns


# -- they cannot work


async def test_workers_that_cannot_work_are_not_able_to_and_hold_no_event() -> None:
    async with told("ftp://nowhere") as (host, workers):
        host.give(1)
        assert workers.is_able

        await until(lambda: workers.restarts)
        workers.wake()

        assert not workers.is_able
        assert (workers.alive, workers.in_flight, len(host.waiting)) == (0, 0, 1)


# -- counts and settling


async def test_an_error_in_settling_keeps_its_event_and_no_count_goes_wrong(sandbox: Sandbox) -> None:
    async with told(sandbox.url) as (host, workers):
        await until(lambda: workers.alive)
        host.refuses = True
        host.give(1, 2, 3)

        workers.wake()
        await until(lambda: workers.in_flight == 0)

        assert len(host.failures) == 1
        assert {*host.failures, *host.answers} == {1, 2, 3}
        assert workers.restarts == 0


# -- they stop


async def test_stopping_does_not_wait_for_a_worker_that_reads_nothing(sandbox: Sandbox) -> None:
    async with told(sandbox.url) as (host, workers):
        # given more than fits into a socket
        await until(lambda: workers.alive)
        [worker] = workers._workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        host.most = 10_000
        host.give(*range(10_000))
        workers.wake()
        assert worker.writer.transport.get_write_buffer_size()

        # when
        async with asyncio.timeout(DEADLINE):
            await workers.stop(0.0)

        # then
        assert not is_alive(worker.process.pid)
        assert (workers.in_flight, host.losses) == (0, [])


@pytest.mark.parametrize("moment", [lambda _: True, lambda _: children(os.getpid()), lambda workers: workers.alive])
async def test_stopping_at_any_moment_of_a_start_leaves_no_process(
    sandbox: Sandbox, moment: Callable[[WorkerPool], object]
) -> None:
    before = children(os.getpid())
    async with told(sandbox.url, count=2) as (_, workers):
        await until(lambda: moment(workers))
        async with asyncio.timeout(DEADLINE):
            await workers.stop(1.0)
        assert children(os.getpid()) <= before
        assert workers.alive == 0
