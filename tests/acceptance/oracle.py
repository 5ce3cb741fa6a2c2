"""The oracle: what was sent and what was answered, held against what was delivered and what was given up.

    acknowledged  is a subset of  delivered + dead letters     nothing is lost
    delivered + dead letters  is a subset of  sent             nothing is invented
    every record and every dead letter says what its id says   nothing is changed

An event is a pure function of its number, so that the ledger holds numbers alone and a soak fits in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from random import Random
from typing import Any

from pointillist_destination.v1 import dead_letter_service_pb2, event_pb2
from service.sandbox.server import Sandbox, TakenRecord

FIRST_TIME = datetime(2026, 2, 23, 22, 28, 55, tzinfo=UTC)  # the timestamp of event 0; any will do
WORDS = ("Zürich", "premium", "naïve", "日本", "a b", "%41", '"quoted"', "tab\tand\nline")
REPEAT_SHARE = 0.3  # of the events sent, those that a client repeats because it never heard of them


@dataclass(frozen=True, slots=True)
class Events:
    """The events of one run, and the records that Pointillist has to be sent for them."""

    name: str
    """Tells the ids of one run from those of another."""
    text_most: int = 400
    """The most words of filling in an event; a word has about six bytes."""

    def message_id(self, number: int) -> str:
        """The message_id of an event."""
        return f"{self.name} {number}"  # the space shows that Idempotency-Key is encoded and read back

    def number(self, message_id: str) -> int | None:
        """The number of an event; None for an id that is not of this run."""
        name, _, number = message_id.rpartition(" ")
        return int(number) if name == self.name and number.isdigit() else None

    def _fields(self, number: int) -> tuple[dict[str, Any], float]:
        """What is drawn for an event: its labels as they come, and its revenue, a multiple of a quarter."""
        random = Random(self.message_id(number))
        text = " ".join(random.choices(WORDS, k=random.randrange(self.text_most)))
        return {"number": str(number), "text": text, "gift": random.random() < 0.5}, random.randrange(1_000_000) / 4

    def event(self, number: int) -> event_pb2.Event:
        """An event: one in four is an identify."""
        labels, revenue = self._fields(number)
        event = event_pb2.Event()
        message: event_pb2.Track | event_pb2.Identify
        if number % 4 == 0:
            message = event.identify
            message.traits.update(labels | {"revenue": revenue})
        else:
            message = event.track
            message.event = f"Event {number % 7}"
            message.properties.update(labels | {"revenue": revenue})
            message.context.campaign.name = f"Campaign {number % 5}"
        message.message_id = self.message_id(number)
        message.user_id = f"u-{number}"
        if number % 3 == 0:
            message.anonymous_id = f"a-{number}"
        message.timestamp.FromDatetime(_time(number))
        return event

    def record(self, number: int) -> dict[str, Any]:
        """The record of an event, as docs/mapping.md has it; made without the service's own mapping."""
        labels, revenue = self._fields(number)
        labels["gift"] = "true" if labels["gift"] else "false"
        if number % 4:
            labels["campaign_name"] = f"Campaign {number % 5}"
        customer = {"userId": f"u-{number}"}
        if number % 3 == 0:
            customer["anonymousId"] = f"a-{number}"
        return {
            "eventSource": "Segment",
            "eventType": f"Event {number % 7}" if number % 4 else "identify",
            "eventTime": _time(number).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "actors": {"Customer": customer},
            "labels": labels,
            "numbers": {"revenue": f"{revenue:.2f}".rstrip("0").rstrip(".")},
        }


def _time(number: int) -> datetime:
    return FIRST_TIME + timedelta(milliseconds=number)


@dataclass
class Ledger:
    """What clients sent, and what they were told."""

    events: Events
    random: Random
    sent: int = 0
    """Events 1 to this number were sent at least once."""
    accepted: set[int] = field(default_factory=set)
    """Those that were answered ACCEPTED, or DUPLICATE when they were repeated: either says that it is on disk."""
    unanswered: list[int] = field(default_factory=list)
    """Those that were sent without an answer; the server may have them or not."""
    repeated: set[int] = field(default_factory=set)
    """Those that were sent more than once."""
    false_duplicates: set[int] = field(default_factory=set)
    """Those that were answered DUPLICATE although they were sent once."""

    def draw(self) -> int:
        """An event to send: a new one, or now and then one that was never answered."""
        if self.unanswered and self.random.random() < REPEAT_SHARE:
            number = self.unanswered.pop(self.random.randrange(len(self.unanswered)))
            self.repeated.add(number)
            return number
        self.sent += 1
        return self.sent

    def answered(self, numbers: Iterable[int], duplicates: int = 0) -> None:
        """Note an answer that counts these events as on disk, so many of them as duplicates."""
        numbers = set(numbers)
        if duplicates > len(numbers & self.repeated):
            self.false_duplicates |= numbers
        self.accepted |= numbers

    def lost_sight_of(self, numbers: Iterable[int]) -> None:
        """Note that these were sent and not answered."""
        self.unanswered.extend(numbers)


@dataclass
class Evidence:
    """What came out at the other end."""

    events: Events
    delivered: set[int] = field(default_factory=set)
    deliveries: int = 0
    dead: set[int] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    """Ids that are not of this run."""
    changed: set[int] = field(default_factory=set)
    """Events that did not come out as they went in."""

    def look_at_records(self, records: Iterable[TakenRecord]) -> None:
        """Take note of what Pointillist was sent."""
        for taken in records:
            self.deliveries += 1
            number = self.events.number(taken.message_id)
            if number is None:
                self.unknown.add(taken.message_id)
                continue
            self.delivered.add(number)
            if taken.record != self.events.record(number):
                self.changed.add(number)

    def take_from(self, sandbox: Sandbox) -> None:
        """Take note of what a sandbox has, and have it forget that, so that a long run fits in memory."""
        records = sandbox.records
        assert len(records) == sandbox.taken, "the sandbox keeps fewer records than it took; raise its `keep`"
        sandbox.clear()
        self.look_at_records(records)

    def look_at_dead_letters(self, letters: Iterable[dead_letter_service_pb2.DeadLetter]) -> None:
        """Take note of what was given up."""
        for letter in letters:
            number = self.events.number(letter.message_id)
            if number is None:
                self.unknown.add(letter.message_id)
                continue
            self.dead.add(number)
            if letter.event != self.events.event(number):
                self.changed.add(number)

    @property
    def duplicates(self) -> int:
        """Deliveries beyond the first of each event; after a crash there are some, which shows that replay ran."""
        known = self.deliveries - len(self.unknown)
        return known - len(self.delivered)


@dataclass
class Repeats:
    """Deliveries of events that were delivered before: only a kill before the settlement may have caused one.

    A life is that of one server process, from its start to its end.
    """

    within_a_life: set[int] = field(default_factory=set)
    """Events that were delivered twice in one life."""
    of_settled: set[int] = field(default_factory=set)
    """Events that were delivered again although they were no longer in the outbox at the end of an earlier life."""
    settled: set[int] = field(default_factory=set)
    """Events that were delivered and were not in the outbox at the end of that life."""

    def end_life(self, delivered: Iterable[int], pending: set[int]) -> None:
        """Take note of a life.

        Args:
            delivered: each delivery of it, in order.
            pending: the events that the outbox holds at its end.
        """
        seen: set[int] = set()
        for number in delivered:
            if number in seen:
                self.within_a_life.add(number)
            seen.add(number)
        self.of_settled |= seen & self.settled
        self.settled |= seen - pending


@dataclass(frozen=True)
class Verdict:
    """A ledger and the evidence, held against each other."""

    ledger: Ledger
    evidence: Evidence

    @cached_property
    def lost(self) -> set[int]:
        """Events that were acknowledged, and came out nowhere."""
        return self.ledger.accepted - self.evidence.delivered - self.evidence.dead

    @cached_property
    def invented(self) -> set[str]:
        """What came out and was never sent."""
        never_sent = {n for n in self.evidence.delivered | self.evidence.dead if not 0 < n <= self.ledger.sent}
        return self.evidence.unknown | {self.ledger.events.message_id(number) for number in never_sent}

    @property
    def changed(self) -> set[int]:
        """Events that came out other than they went in."""
        return self.evidence.changed

    @property
    def faults(self) -> dict[str, list[Any]]:
        """Everything that is wrong, by its kind, a few examples each; empty where all is well."""
        kinds: dict[str, Iterable[Any]] = {
            "lost": self.lost,
            "invented": self.invented,
            "changed": self.changed,
            "falsely called duplicates": self.ledger.false_duplicates,
        }
        return {kind: sorted(found)[:10] for kind, found in kinds.items() if found}
