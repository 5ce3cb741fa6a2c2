"""The outbox on JetStream against a model of it, in any order of calls, as far as the promise is a file's.

Which of several events a fetch gives, and how often one of an earlier process was tried, is not promised.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.clock import SystemClock
from service.config.address import NatsServers
from service.outbox.base import DeadLetterFilter, Replayed, Stored
from service.outbox.jetstream.connection import NatsAccess
from service.outbox.jetstream.outbox import JetStreamOutbox
from service.outbox.jetstream.streams import Plan
from tests.support.events import entry
from tests.support.nats import NatsServer
from tests.support.outboxes import ALL, REFUSAL, RETRY_MAX_DELAY, take

Result = TypeVar("Result")
NUMBERS = st.integers(0, 12)  # few, so that message_ids come again


@dataclass
class Model:
    """The content of an outbox, in plain Python; events by their place in the order of acceptance."""

    waiting: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    leased: dict[int, Stored] = field(default_factory=dict)
    put_back: set[int] = field(default_factory=set)
    """Those that are due so late that no test sees it."""
    seen: set[str] = field(default_factory=set)
    dead: list[str] = field(default_factory=list)
    count: int = 0

    def put(self, message_id: str) -> bool:
        """Return True if the event is new."""
        if message_id in self.seen:
            return False
        self.seen.add(message_id)
        self.add(message_id)
        return True

    def add(self, message_id: str) -> None:
        """Have one more event wait."""
        self.count += 1
        self.waiting[self.count] = message_id
        self.attempts[self.count] = 0

    def free(self) -> dict[int, str]:
        """The events that can be fetched."""
        return {one: id_ for one, id_ in self.waiting.items() if one not in self.leased and one not in self.put_back}


class JetStreamMachine(RuleBasedStateMachine):
    """Calls an outbox and the model alike."""

    url: ClassVar[str]

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.plan = Plan(f"T-{uuid4().hex}")
        self.model = Model()
        self.run(self.open_outbox())

    def run(self, coroutine: Coroutine[object, object, Result]) -> Result:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))

    async def open_outbox(self) -> None:
        access = NatsAccess(NatsServers.parse(self.url))
        self.outbox = JetStreamOutbox(
            access, self.plan, clock=SystemClock(), retry_max_delay=RETRY_MAX_DELAY, settled=lambda *_: None
        )
        await self.outbox.start(20)

    @rule(numbers=st.lists(NUMBERS, max_size=20))
    def put(self, numbers: list[int]) -> None:
        stored = self.run(self.outbox.put([entry(number) for number in numbers]))
        assert stored == [self.model.put(f"m-{number}") for number in numbers]

    @rule(limit=st.integers(1, 10))
    def fetch(self, limit: int) -> None:
        free = self.model.free()
        fetched = self.run(take(self.outbox, min(limit, len(free))))
        for stored in fetched:
            place = next(one for one, message_id in free.items() if message_id == stored.message_id)
            del free[place]
            self.model.leased[place] = stored
            assert stored.attempts >= self.model.attempts[place]
            assert stored.payload == entry(int(stored.message_id[2:])).payload

    @precondition(lambda self: not self.model.free())
    @rule()
    def fetch_nothing(self) -> None:
        assert self.run(self.outbox.fetch(10)) == []

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        place, stored = self.a_leased_one(data)
        self.settle(lambda: self.outbox.ack(stored))
        del self.model.waiting[place]

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data(), is_late=st.booleans(), attempted=st.booleans())
    def nak(self, data: st.DataObject, is_late: bool, attempted: bool) -> None:
        place, stored = self.a_leased_one(data)
        delay = RETRY_MAX_DELAY if is_late else 0.0
        settle = self.outbox.nak if attempted else self.outbox.release
        self.settle(lambda: settle(stored, delay))
        self.model.attempts[place] += attempted
        if is_late:
            self.model.put_back.add(place)

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data())
    def term(self, data: st.DataObject) -> None:
        place, stored = self.a_leased_one(data)
        self.settle(lambda: self.outbox.term(stored, REFUSAL))
        self.model.dead.append(self.model.waiting.pop(place))

    def settle(self, settle: Callable[[], None]) -> None:
        async def settle_on_the_loop() -> None:
            settle()

        self.run(settle_on_the_loop())

    def a_leased_one(self, data: st.DataObject) -> tuple[int, Stored]:
        place = data.draw(st.sampled_from(sorted(self.model.leased)))
        return place, self.model.leased.pop(place)

    @rule(number=st.none() | NUMBERS, is_replayed=st.booleans())
    def empty_the_dead_letters(self, number: int | None, is_replayed: bool) -> None:
        which = ALL if number is None else DeadLetterFilter(user_id=f"u-{number}")
        taken = [one for one in self.model.dead if number is None or one == f"m-{number}"]
        self.model.dead = [one for one in self.model.dead if one not in taken]
        if is_replayed:
            assert self.run(self.outbox.dead_letters.replay(which)) == Replayed(len(taken), 0)
        else:
            assert self.run(self.outbox.dead_letters.delete(which)) == len(taken)
        for message_id in taken if is_replayed else ():
            self.model.add(message_id)

    @rule()
    def reopen(self) -> None:
        self.run(self.outbox.close())
        self.run(self.open_outbox())
        self.model.leased.clear()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.run(self.outbox.flush())
        stats = self.outbox.stats()
        assert (stats.events, stats.dead_letters) == (len(self.model.waiting), len(self.model.dead))
        letters = self.run(self.outbox.dead_letters.list(ALL, after=0, limit=1000))
        assert [letter.message_id for letter in letters] == self.model.dead

    def teardown(self) -> None:
        self.run(self.outbox.close())
        self.loop.close()


@pytest.mark.parametrize("examples", [8, pytest.param(100, marks=pytest.mark.long)])
def test_an_outbox_on_jetstream_holds_what_its_model_holds(nats_server: NatsServer, examples: int) -> None:
    JetStreamMachine.url = nats_server.url
    checks = [HealthCheck.too_slow]
    run_state_machine_as_test(
        JetStreamMachine,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=checks),
    )
