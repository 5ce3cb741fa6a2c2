"""A group commit: the work of one turn of the outbox's writer, and the counts that it changes."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.errors import OutboxUnavailableError
from service.outbox.base import Entry, Refusal, Stored


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

    puts: list[tuple[Sequence[Entry], "asyncio.Future[list[bool]]"]] = field(default_factory=list)
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

    def put(self, entries: Sequence[Entry], future: "asyncio.Future[list[bool]]") -> None:
        """Add events to be put; `future` receives the result."""
        self.puts.append((entries, future))
        self.put_events += len(entries)
        self.put_bytes += sum(len(entry.payload) for entry in entries)

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

    def refuse_puts(self, error: OutboxUnavailableError) -> list[tuple["asyncio.Future[Any]", Any]]:
        """Take the puts out, and return the outcome of each, so that none overtakes those that were refused before."""
        refused: list[tuple[asyncio.Future[Any], Any]] = [(future, error) for _, future in self.puts]
        self.puts, self.put_events, self.put_bytes = [], 0, 0
        return refused

    def settlements(self) -> int:
        """Return the number of events that it settles."""
        return len(self.acks) + len(self.naks) + len(self.terms)

    def proves_disk_writable(self) -> bool:
        """Return True if its success proves that the disk takes new events, which mere settlements do not prove."""
        return self.refused is None and not self.stuck and bool(self.is_trial or self.retries or self.puts)

    def fail(self, error: Exception) -> None:
        """Fail every future with an error. Called on the event loop."""
        futures: list[asyncio.Future[Any]] = [future for _, future in (*self.puts, *self.calls, *self.reads)]
        for future in futures:
            if not future.done():
                future.set_exception(error)
