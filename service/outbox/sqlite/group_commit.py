"""A group commit: the work of one turn of the outbox's writer, and the counts that it changes."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.errors import OutboxUnavailableError
from service.outbox.base import Entry, Refusal, Stored

BULK_EVENTS = 2000  # put in bulk by one transaction; a larger put has one of its own


class Put(NamedTuple):
    """Events to be put together."""

    entries: Sequence[Entry]
    future: asyncio.Future[list[bool]]
    """Receives the result."""
    size: int
    """Sum of the payloads, in bytes."""


@dataclass(slots=True)
class Counts:
    """The counter row, or the changes that a transaction makes to it."""

    events: int
    bytes: int
    seen: int
    dead_letters: int

    def __add__(self, change: "Counts") -> "Counts":
        """Apply the changes of a transaction."""
        return Counts(
            self.events + change.events,
            self.bytes + change.bytes,
            self.seen + change.seen,
            self.dead_letters + change.dead_letters,
        )


@dataclass(slots=True)
class GroupCommit:
    """Work done together: settle, put and call in one transaction, then read."""

    puts: list[Put] = field(default_factory=list)
    put_events: int = 0
    put_bytes: int = 0
    acks: list[Stored] = field(default_factory=list)
    naks: list[tuple[Stored, int, int]] = field(default_factory=list)
    terms: list[tuple[Stored, Refusal, int]] = field(default_factory=list)
    settled_bytes: int = 0
    """Sum of the payloads of the events that it settles."""
    released: list[Stored] = field(default_factory=list)
    """Leases that end without a change of the file."""
    calls: list[tuple[Callable[[Counts], Any], "asyncio.Future[Any]"]] = field(default_factory=list)
    reads: list[tuple[Callable[[], Any], "asyncio.Future[Any]"]] = field(default_factory=list)
    done: list[tuple["asyncio.Future[Any]", Any]] = field(default_factory=list)
    """The outcome: a result or an exception for each future."""
    new: list[Stored] = field(default_factory=list)
    """Events that it put, for the TailCache."""
    is_trial: bool = False
    """True to write even if there is nothing to write, to find out whether the disk accepts writes."""
    is_apart: bool = False
    """True if it could not be executed in one transaction, and was in several; `new` is empty then."""
    retries: bool = False
    """True if it includes settlements that an earlier group commit could not write."""
    refused: OutboxUnavailableError | None = None
    """The error with which the disk refused it; its settlements may have been written on their own."""
    stuck: bool = False
    """True if its settlements, or those that are left in it, could not be written and must be retried."""
    has_settled: bool = False
    """True if some settlements were written nevertheless."""

    def put(self, put: Put) -> None:
        """Add events to be put."""
        self.puts.append(put)
        self.put_events += len(put.entries)
        self.put_bytes += put.size

    def ack(self, stored: Stored) -> None:
        """Add the settlement of a delivered event."""
        self.acks.append(stored)
        self.settled_bytes += len(stored.payload)

    def nak(self, stored: Stored, due_at: int, now: int) -> None:
        """Add the settlement of an event that is due again at `due_at`; both times are in milliseconds."""
        self.naks.append((stored, due_at, now))
        self.settled_bytes += len(stored.payload)

    def term(self, stored: Stored, refusal: Refusal, now: int) -> None:
        """Add the settlement of an event that is given up; `now` is in milliseconds."""
        self.terms.append((stored, refusal, now))
        self.settled_bytes += len(stored.payload)

    def settled(self) -> Iterator[Stored]:
        """Return the events that it settles."""
        yield from self.acks
        for stored, *_ in (*self.naks, *self.terms):
            yield stored

    def each_settlement(self) -> list["GroupCommit"]:
        """Return its settlements one by one, in the order in which they are executed."""
        return [
            *(GroupCommit(acks=[stored]) for stored in self.acks),
            *(GroupCommit(naks=[nak]) for nak in self.naks),
            *(GroupCommit(terms=[term]) for term in self.terms),
        ]

    def keep_settlements(self, some: Iterable["GroupCommit"]) -> None:
        """Keep these of its settlements and no others."""
        kept = list(some)
        self.acks = [stored for one in kept for stored in one.acks]
        self.naks = [nak for one in kept for nak in one.naks]
        self.terms = [term for one in kept for term in one.terms]

    def resolve(self) -> None:
        """Give each future its outcome. Called on the event loop."""
        for future, result in self.done:
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def settlements(self) -> int:
        """Return the number of events that it settles."""
        return len(self.acks) + len(self.naks) + len(self.terms)

    def proves_disk_writable(self) -> bool:
        """Return True if its success proves that the disk takes new events, which mere settlements do not prove."""
        return self.refused is None and not self.stuck and bool(self.is_trial or self.retries or self.puts)

    def fail(self, error: Exception) -> None:
        """Fail every future with an error. Called on the event loop."""
        futures: list[asyncio.Future[Any]] = [
            *(put.future for put in self.puts),
            *(future for _, future in (*self.calls, *self.reads)),
        ]
        for future in futures:
            if not future.done():
                future.set_exception(error)


@dataclass(slots=True)
class WaitingPuts:
    """Puts that wait for their group commit.

    Those in bulk take turns, and leave every other commit to the rest: so the rest waits for at most one commit with
    bulk, and bulk for at most one without. No put overtakes one in bulk that came after it.
    """

    events: int = 0
    bytes: int = 0
    """Sum of the payloads."""
    _puts: list[Put] = field(default_factory=list)
    _bulk: deque[Put] = field(default_factory=deque)
    _is_turn_of_bulk: bool = True

    def add(self, put: Put, *, in_bulk: bool) -> None:
        """Add a put behind those that wait."""
        (self._bulk if in_bulk else self._puts).append(put)
        self.events += len(put.entries)
        self.bytes += put.size

    def fill(self, work: GroupCommit) -> None:
        """Move those whose turn it is to a group commit."""
        puts, self._puts = self._puts, []
        if self._bulk and puts and not self._is_turn_of_bulk:
            self._is_turn_of_bulk = True
        else:
            self._is_turn_of_bulk = not self._bulk
            room = BULK_EVENTS
            while self._bulk and (room == BULK_EVENTS or len(self._bulk[0].entries) <= room):
                puts.append(self._bulk.popleft())
                room -= len(puts[-1].entries)
        for put in puts:
            self.events -= len(put.entries)
            self.bytes -= put.size
            work.put(put)

    def take_all(self) -> list[Put]:
        """Take all out, and return them."""
        puts = [*self._puts, *self._bulk]
        self._puts, self._bulk, self.events, self.bytes = [], deque(), 0, 0
        return puts

    def __bool__(self) -> bool:
        """Return True if any wait."""
        return bool(self._puts or self._bulk)
