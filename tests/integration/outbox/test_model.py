"""The SQLite outbox against a model of it, a dictionary, in any order of calls, crashes included."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.outbox.base import DeadLetterFilter, Pick, Replayed, Stored
from tests.support.clock import HandClock
from tests.support.events import entry
from tests.support.outboxes import ALL, REFUSAL, WINDOW, open_outbox
from tests.support.sizes import sized

Result = TypeVar("Result")
NUMBERS = st.integers(0, 12)  # few, so that message_ids come again


@dataclass(frozen=True)
class Waiting:
    """One pending event of the model."""

    message_id: str
    attempts: int = 0
    due_at: float | None = None


@dataclass
class Model:
    """The content of an outbox, in plain Python. Events are in the order of acceptance."""

    waiting: dict[int, Waiting] = field(default_factory=dict)
    leased: dict[int, Stored] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)
    ids: int = 0

    def put(self, message_id: str, now: float) -> bool:
        """Return True if the event is new."""
        if message_id in self.seen and now - self.seen[message_id] <= WINDOW:
            return False
        self.seen[message_id] = now
        self.add(message_id)
        return True

    def add(self, message_id: str) -> None:
        """Have one more event wait, at the end."""
        self.ids += 1
        self.waiting[self.ids] = Waiting(message_id)

    def fetch(self, limit: int, pick: Pick, now: float) -> list[int]:
        """Return the events that are fetched, in order."""
        free = {number: one for number, one in self.waiting.items() if number not in self.leased}
        new = [number for number, one in free.items() if one.due_at is None]
        put_back = sorted((one.due_at, number) for number, one in free.items() if one.due_at is not None)
        due = [number for due_at, number in put_back if pick is Pick.TRIED or due_at <= now]
        picked = {Pick.READY: due + new, Pick.NEW: new, Pick.NEWEST: new[::-1], Pick.DUE: due, Pick.TRIED: due}
        return picked[pick][:limit]


class OutboxMachine(RuleBasedStateMachine):
    """Calls an outbox and the model alike."""

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-model-"))
        self.generation = 0
        self.clock = HandClock()
        self.model = Model()
        self.run(self.open_file())

    def run(self, coroutine: Coroutine[object, object, Result]) -> Result:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 10))

    async def open_file(self) -> None:
        self.outbox = open_outbox(self.path, self.clock)

    @property
    def path(self) -> Path:
        return self.folder / f"outbox-{self.generation}.db"

    @rule(numbers=st.lists(NUMBERS, max_size=20))
    def put(self, numbers: list[int]) -> None:
        stored = self.run(self.outbox.put([entry(number) for number in numbers]))
        assert stored == [self.model.put(f"m-{number}", self.clock.now) for number in numbers]

    @rule(numbers=st.lists(NUMBERS, min_size=2, max_size=5))
    def put_at_once(self, numbers: list[int]) -> None:
        async def puts() -> list[list[bool]]:
            return await asyncio.gather(*(self.outbox.put([entry(number)]) for number in numbers))

        assert self.run(puts()) == [[self.model.put(f"m-{number}", self.clock.now)] for number in numbers]

    @rule(limit=st.integers(1, 10), pick=st.sampled_from(Pick))
    def fetch(self, limit: int, pick: Pick) -> None:
        fetched = self.run(self.outbox.fetch(limit, pick))
        numbers = self.model.fetch(limit, pick, self.clock.now)
        expected = [self.model.waiting[number] for number in numbers]
        # Events put back to the same millisecond are due in any order.
        assert sorted((one.message_id, one.attempts) for one in fetched) == sorted(
            (one.message_id, one.attempts) for one in expected
        )
        left = dict.fromkeys(numbers)
        for stored in fetched:
            number = next(n for n in left if self.model.waiting[n].message_id == stored.message_id)
            del left[number]
            self.model.leased[number] = stored

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        number, stored = self.a_leased_one(data)
        self.outbox.ack(stored)
        self.run(self.outbox.flush())
        del self.model.waiting[number]

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data(), delay=st.integers(0, 20))
    def nak(self, data: st.DataObject, delay: int) -> None:
        number, stored = self.a_leased_one(data)
        self.outbox.nak(stored, float(delay))
        self.run(self.outbox.flush())
        waiting = self.model.waiting[number]
        self.model.waiting[number] = replace(waiting, attempts=waiting.attempts + 1, due_at=self.clock.now + delay)

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, stored = self.a_leased_one(data)
        self.outbox.release(stored)

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data())
    def term(self, data: st.DataObject) -> None:
        number, stored = self.a_leased_one(data)
        self.outbox.term(stored, REFUSAL)
        self.run(self.outbox.flush())
        self.model.dead.append(self.model.waiting.pop(number).message_id)

    def a_leased_one(self, data: st.DataObject) -> tuple[int, Stored]:
        number = data.draw(st.sampled_from(sorted(self.model.leased)))
        return number, self.model.leased.pop(number)

    @rule(number=st.none() | NUMBERS)
    def replay(self, number: int | None) -> None:
        which = ALL if number is None else DeadLetterFilter(user_id=f"u-{number}")
        replayed = self.take_dead(number)
        assert self.run(self.outbox.dead_letters.replay(which)) == Replayed(len(replayed), 0)
        for message_id in replayed:
            self.model.add(message_id)

    @rule(number=st.none() | NUMBERS)
    def delete(self, number: int | None) -> None:
        which = ALL if number is None else DeadLetterFilter(user_id=f"u-{number}")
        assert self.run(self.outbox.dead_letters.delete(which)) == len(self.take_dead(number))

    def take_dead(self, number: int | None) -> list[str]:
        taken = [one for one in self.model.dead if number is None or one == f"m-{number}"]
        self.model.dead = [one for one in self.model.dead if one not in taken]
        return taken

    @rule(seconds=st.sampled_from([1, 5, WINDOW - 1, WINDOW + 1]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule()
    def reopen(self) -> None:
        self.run(self.outbox.close())
        self.run(self.open_file())
        self.model.leased.clear()

    @rule()
    def crash(self) -> None:
        """Go on with what is on disk at this moment: everything whose put returned has to be there."""
        before = self.path
        self.generation += 1
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(f"{before}{suffix}", f"{self.path}{suffix}")
        self.run(self.outbox.close())
        self.run(self.open_file())
        self.model.leased.clear()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        stats = self.outbox.stats()
        assert (stats.events, stats.dead_letters) == (len(self.model.waiting), len(self.model.dead))
        sizes = [len(entry(int(one.message_id.removeprefix("m-"))).payload) for one in self.model.waiting.values()]
        assert stats.bytes == sum(sizes)

    @invariant()
    def lists_the_dead_letters_of_the_model(self) -> None:
        letters = self.run(self.outbox.dead_letters.list(ALL, after=0, limit=1000))
        assert [letter.message_id for letter in letters] == self.model.dead

    def teardown(self) -> None:
        self.run(self.outbox.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestOutboxModel = OutboxMachine.TestCase
TestOutboxModel.settings = settings(max_examples=sized(12, 40), stateful_step_count=40, deadline=None)
