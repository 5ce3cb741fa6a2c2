"""One turn of the outbox's writer, and the counts that it changes."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.errors import OutboxUnavailableError
from service.outbox.base import Entry, Refusal, Stored


@dataclass(slots=True)
class Counts:
    """The counter row, or what a transaction adds to it."""

    events: int
    bytes: int
    seen: int
    dead_letters: int

    def __add__(self, change: "Counts") -> "Counts":
        """What is held once a transaction has changed it."""
        return Counts(
            self.events + change.events,
            self.bytes + change.bytes,
            self.seen + change.seen,
            self.dead_letters + change.dead_letters,
        )


@dataclass(slots=True)
class GroupCommit:
    """What one turn does: settle, put and call in one transaction, then read."""

    puts: list[tuple[Sequence[Entry], "asyncio.Future[list[bool]]"]] = field(default_factory=list)
    put_events: int = 0
    put_bytes: int = 0
    acks: list[Stored] = field(default_factory=list)
    naks: list[tuple[Stored, int, int, bool]] = field(default_factory=list)
    terms: list[tuple[Stored, Refusal, int]] = field(default_factory=list)
    calls: list[tuple[Callable[[Counts], Any], "asyncio.Future[Any]"]] = field(default_factory=list)
    reads: list[tuple[Callable[[], Any], "asyncio.Future[Any]"]] = field(default_factory=list)
    done: list[tuple["asyncio.Future[Any]", Any]] = field(default_factory=list)
    """Its outcome: a result or an exception for each future."""
    new: list[Stored] = field(default_factory=list)
    """Events that it put, for the tail."""
    is_trial: bool = False
    """Whether it writes for no other reason than to see whether the disk takes it."""
    retries: bool = False
    """Whether it settles what a round before could not write."""
    refused: OutboxUnavailableError | None = None
    """The error with which the disk refused it, settlements possibly excepted."""
    stuck: bool = False
    """Whether its settlements could not be written, and are to be tried again."""

    def put(self, entries: Sequence[Entry], future: "asyncio.Future[list[bool]]") -> None:
        """Have it put events."""
        self.puts.append((entries, future))
        self.put_events += len(entries)
        self.put_bytes += sum(len(entry.payload) for entry in entries)

    def settlements(self) -> int:
        """How many events it settles."""
        return len(self.acks) + len(self.naks) + len(self.terms)

    def proves_the_disk(self) -> bool:
        """Whether its success says that the disk takes new events again, which settlements need not say."""
        return self.refused is None and not self.stuck and bool(self.is_trial or self.retries or self.puts)

    def fail(self, error: Exception) -> None:
        """Tell everybody who waits for it that it does not come; on the event loop."""
        futures: list[asyncio.Future[Any]] = [future for _, future in (*self.puts, *self.calls, *self.reads)]
        for future in futures:
            if not future.done():
                future.set_exception(error)
