"""The outbox: the durable store between the answer to the caller and the POST to Pointillist.

It stores events, not records, so that a mended mapping or setting repairs what waits. Its verbs are JetStream's:
put, fetch, ack, nak, term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """An event on its way in.

    It is a NamedTuple, as are all values on the hot path, because making one costs a third of a dataclass.
    """

    message_id: str
    payload: bytes
    """The serialised Event."""
    accepted_at: int
    """Milliseconds since the epoch; fixed here and used for every later mapping."""
    traceparent: str = ""
    """W3C traceparent of the accepting call's span; "" where the call is not traced, or not sampled."""
    is_awaited: bool = False
    """Whether a caller waits for its delivery, which another process may have to tell of."""


class Stored(NamedTuple):
    """An event that was fetched and is to be settled by exactly one of ack, nak or term."""

    id: int
    """Rises in the order of acceptance; names the event in this outbox alone."""
    message_id: str
    payload: bytes
    accepted_at: int
    """Milliseconds since the epoch."""
    queued_at: int
    """Milliseconds since the epoch, by the outbox's steady clock: when it was put or, if later, replayed."""
    attempts: int
    """POSTs so far whose failure is on record."""
    first_attempt_at: int | None
    """Milliseconds since the epoch, of the first failed POST."""
    traceparent: str = ""
    """As in Entry."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event became a dead letter."""

    reason: str
    """A bounded vocabulary: the HTTP status ("400"), or "max_age"."""
    status: int | None
    """The answer's HTTP status, where there was one."""
    detail: str
    """The start of the answer's body, or what failed."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was given up, kept until somebody replays or deletes it."""

    id: int
    message_id: str
    payload: bytes
    accepted_at: int
    refusal: Refusal
    attempts: int
    first_attempt_at: int
    last_attempt_at: int
    traceparent: str = ""
    """As in Entry; a replay brings it back."""


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters are meant; what is None does not matter. All that is set must hold."""

    ids: tuple[int, ...] | None = None
    reason: str | None = None
    event_type: str | None = None
    """A track's event name, or "identify"."""
    user_id: str | None = None
    """Matches userId and anonymousId."""
    since: int | None = None
    """Milliseconds since the epoch, inclusive, of the last attempt."""
    until: int | None = None
    """Milliseconds since the epoch, exclusive, of the last attempt."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the outbox holds, as of its last commit, with the dead letters that the next one brings."""

    events: int
    bytes: int
    """Sum of the serialised events that wait."""
    oldest_at: int | None
    """Milliseconds since the epoch: when the oldest waiting event was accepted."""
    dead_letters: int


class Outbox(Protocol):
    """The seam between the way in and the way out.

    Calls come from one event loop alone. Errors are OutboxError and its kin. A file is owned by one process. A
    JetStream is shared by several, and promises less (docs/nats.md): a put that fails may have stored some events, the
    duplicate window is short and best effort, a lease ends when its process is silent for long, attempts and the first
    one's time are known to the process that made them and estimated by others, due times are NATS' own, an early fetch
    finds what this process put back, and a fetch may miss what was put a moment ago; `arrived` then tells of it.
    """

    async def put(self, entries: Sequence[Entry]) -> list[bool]:
        """Store events, all or none, and return once they are on disk.

        Returns one boolean an entry, in order: False for one whose message_id is a duplicate within the window,
        earlier in `entries` included; it is not stored.

        Raises:
            OutboxFullError: there is no room, or the disk refuses; nothing was stored.
        """

    async def fetch(self, limit: int, *, early: bool = False) -> list[Stored]:
        """Lease up to `limit` events that are due, oldest first; with `early`, also such as are not due yet.

        A leased event is not fetched again before it is settled or the outbox is opened anew.
        """

    def ack(self, stored: Stored) -> None:
        """Settle as delivered. It reaches the disk a little later; a crash before that means a repeat."""

    def nak(self, stored: Stored, delay: float, *, attempted: bool = True) -> None:
        """Settle as to be tried again in `delay` seconds; `attempted` counts the try."""

    def term(self, stored: Stored, refusal: Refusal) -> None:
        """Settle as given up: the event becomes a dead letter in one transaction."""

    def subscribe(self, arrived: Callable[[], None]) -> None:
        """Have `arrived` called, on the event loop, whenever something new may be fetched."""

    def next_due(self) -> float | None:
        """Seconds until an event that was put back may be due; None where none was."""

    def stats(self) -> Stats:
        """What is held, as of the last commit."""

    def full(self) -> str | None:
        """Which bound is reached, in words; None where there is room."""

    def broken(self) -> str | None:
        """Why nothing works any more until the process is started anew, in words; None while it does."""

    async def has_room(self) -> None:
        """Return once `put` would not be refused for want of room."""

    async def list_dead_letters(self, which: DeadLetterFilter, *, after: int, limit: int) -> list[DeadLetter]:
        """Up to `limit` dead letters with an id above `after`, by rising id."""

    async def replay_dead_letters(self, which: DeadLetterFilter) -> int:
        """Move dead letters back to the end of the queue, with their message_ids; returns how many."""

    async def delete_dead_letters(self, which: DeadLetterFilter) -> int:
        """Delete dead letters for good; returns how many."""

    async def flush(self) -> None:
        """Return once all that was settled is on disk."""

    async def close(self) -> None:
        """Flush and let go of the store."""


class OpenOutbox(Outbox, Protocol):
    """An Outbox with what its operator is shown of it; calls are cheap, and come from any thread."""

    @property
    def commits(self) -> int:
        """How often events were made durable together, since start."""

    @property
    def committed_events(self) -> int:
        """Events that were, since start."""

    @property
    def evictions(self) -> int:
        """message_ids that the duplicate window forgot for want of room, since start."""

    def unreachable(self) -> str | None:
        """Why it cannot be relayed from, in words; None while it can, be it full or not."""

    async def watch(self) -> None:
        """Return never, but raise what ends it by itself.

        Raises:
            OutboxUnusableError: it turned out, once it could be looked at, that it cannot be used.
        """
