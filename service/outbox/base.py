"""The durable store between the response to the caller and the POST to Pointillist.

It stores events, not records, so that a corrected mapping or setting also applies to pending events. Its verbs are
JetStream's: put, fetch, ack, nak, term.

Each user of the outbox is given only its half: the way in a Sink, the relay a Queue, DeadLetterService the DeadLetters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from service.errors import OutboxUnavailableError

UNREADABLE = "unreadable"
"""The reason of a dead letter whose stored bytes do not parse: a replay leaves it."""


class Entry(NamedTuple):
    """An event to be stored.

    A NamedTuple, as are all values on the hot path, because creating one costs a third of a dataclass.
    """

    message_id: str
    payload: bytes
    """The serialised Event."""
    accepted_at: int
    """Milliseconds since the epoch; fixed here and used for every later mapping."""
    traceparent: str = ""
    """W3C traceparent of the accepting call's span; "" if the call is not traced, or not sampled."""
    is_awaited: bool = False
    """A caller is blocked in wait_for_delivery; the process that delivers must notify this one."""


class Stored(NamedTuple):
    """A leased event, to be settled by exactly one of ack, nak or term."""

    id: int
    """Increases in the order of acceptance; unique within this outbox only."""
    message_id: str
    payload: bytes
    accepted_at: int
    """Milliseconds since the epoch."""
    queued_at: int
    """Milliseconds since the epoch, by the corrected clock: when it was put or, if later, replayed."""
    attempts: int
    """Recorded POSTs that failed."""
    first_attempt_at: int | None
    """Milliseconds since the epoch, of the first failed POST."""
    traceparent: str = ""
    """As in Entry."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why an event became a dead letter."""

    reason: str
    """A bounded vocabulary: the HTTP status ("400"), "max_age", or UNREADABLE."""
    status: int | None
    """The response's HTTP status; None if there was no response."""
    detail: str
    """The start of the response's body, or the failure."""


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
    """As in Entry; a replay restores it."""


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """A selection of dead letters: those that meet every condition that is not None."""

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


class Replayed(NamedTuple):
    """The outcome of a replay."""

    moved: int
    """Dead letters that are pending events again."""
    left: int
    """Dead letters that were left, because they are no events."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts as of the last commit; dead letters include those that are being written."""

    events: int
    """Pending events."""
    bytes: int
    """Sum of the serialised pending events."""
    oldest_at: int | None
    """Milliseconds since the epoch: when the oldest pending event was accepted."""
    dead_letters: int


@dataclass(slots=True)
class Totals:
    """Numbers since an outbox was opened."""

    commits: int = 0
    """Commits that made events durable; on JetStream, puts that the stream acknowledged."""
    committed_events: int = 0
    """Events that these commits made durable."""
    evictions: int = 0
    """message_ids that the duplicate window forgot to stay within its count; JetStream does not report them."""
    parked: int = 0
    """Settlements that could not be stored by themselves; their events are kept until a restart."""
    unreadable: int = 0
    """Pending events that could not be read, as the disk damaged their place."""
    incomplete_checkpoints: int = 0
    """Checkpoints that failed, or left a part of the write-ahead log of a file."""
    log_bytes: int = 0
    """Present size of that log."""


class Attachment(NamedTuple):
    """The state of an event whose delivery a caller awaits, after it was put."""

    is_new: bool
    """False if its message_id is a duplicate."""
    is_pending: bool
    """True if its delivery will be reported to this process."""
    refusal: Refusal | None = None
    """Set if it is a dead letter."""


class Pick(StrEnum):
    """The events that a fetch may lease."""

    READY = "ready"
    """Tried ones that are due, then new ones, each oldest first."""
    NEW = "new"
    """Never tried; oldest first."""
    NEWEST = "newest"
    """Never tried; newest first."""
    DUE = "due"
    """Tried and due; first due first."""
    TRIED = "tried"
    """Tried, due or not; first due first."""


class Sink(Protocol):
    """The half of the outbox that stores events. Called from one event loop only; raises OutboxError only."""

    async def put(self, entries: Sequence[Entry], *, in_bulk: bool = False) -> list[bool]:
        """Store events, all or none, and return once they are on disk.

        Puts are executed in the order of the calls, but those in bulk may be overtaken by others, which so do not wait
        for all of them.

        On JetStream, a put that fails may have stored some of the events (docs/nats.md).

        Returns one boolean per entry, in order: False for one whose message_id is a duplicate within the window,
        earlier in `entries` included; it is not stored.

        Raises:
            OutboxFullError: a bound of the outbox or of its disk is reached; nothing was stored.
            OutboxUnavailableError: the store does not answer, or refuses the write for another reason.
            OutboxClosedError: the outbox was closed.
        """

    async def attach(self, entry: Entry) -> Attachment:
        """Store an event as `put` does, and return its state, or that of the event of which it is a duplicate.

        Raises:
            OutboxUnavailableError: as `put` does; or the state could not be read, and the event is stored.
        """

    def full(self) -> OutboxUnavailableError | None:
        """Return the error that `put` would raise now; None while it would store events."""

    async def has_room(self) -> None:
        """Return once `full` is None."""


class Queue(Protocol):
    """The half of the outbox that hands out events. Called from one event loop only; raises OutboxError only.

    A SQLite file is owned by one process. A JetStream is shared by several, and promises less (docs/nats.md): the
    duplicate window is short and best effort, a lease ends when its process is silent for long, attempts and the first
    attempt's time are known to the process that made them and estimated by others, due times are NATS' own, an early
    fetch finds only the events that this process put back, and a fetch may miss an event that was put a moment ago;
    `arrived` is then called for it. It does not distinguish new events from tried ones: NEW and DUE fetch as READY
    does; NEWEST and TRIED too, and then the events that this process put back.
    """

    async def fetch(self, limit: int, pick: Pick = Pick.READY) -> list[Stored]:
        """Lease up to `limit` events.

        A leased event is not fetched again before it is settled or the outbox is opened again.
        """

    def ack(self, stored: Stored) -> None:
        """Settle as delivered. It reaches the disk a little later; after a crash before that, it is delivered again."""

    def nak(self, stored: Stored, delay: float) -> None:
        """Settle for redelivery in `delay` seconds, and count the attempt."""

    def release(self, stored: Stored, delay: float = 0.0) -> None:
        """Give an event back that was not tried, for redelivery in `delay` seconds."""

    def term(self, stored: Stored, refusal: Refusal) -> None:
        """Settle as given up: the event becomes a dead letter in one transaction."""

    def settles(self) -> bool:
        """Return True while settlements reach the disk; otherwise nothing more should be sent.

        Every event that is sent meanwhile would be held in memory, and be sent again after a crash.
        """

    def subscribe(self, arrived: Callable[[], None]) -> None:
        """Have `arrived` called, on the event loop, whenever an event may have become available to fetch."""

    def next_due(self) -> float | None:
        """Return the seconds until an event that was put back may be due; None if there is none."""

    def stats(self) -> Stats:
        """Return the counts as of the last commit."""


class DeadLetters(Protocol):
    """The dead letters of an outbox. Called from one event loop only; raises OutboxError only."""

    async def list(self, which: DeadLetterFilter, *, after: int, limit: int) -> Sequence[DeadLetter]:
        """Return up to `limit` dead letters with an id above `after`, by rising id."""

    async def replay(self, which: DeadLetterFilter) -> Replayed:
        """Move dead letters to the end of the queue, with their message_ids; those with the reason UNREADABLE are left.

        Raises:
            OutboxFullError: there is no capacity for pending events.
        """

    async def delete(self, which: DeadLetterFilter) -> int:
        """Delete dead letters for good; return the number deleted."""


class Memory(Protocol):
    """Short texts that an outbox keeps beside its events."""

    async def recall(self, name: str) -> str:
        """Return the text that was remembered under a name, in this process or an earlier one; "" if there is none."""

    async def remember(self, name: str, text: str) -> None:
        """Keep a text under a name, as durably as the events; a store that replicas share keeps nothing."""


class OpenOutbox(Sink, Queue, Memory, Protocol):
    """An open outbox, as the composition root holds it. Properties are cheap, and may be read from any thread."""

    @property
    def dead_letters(self) -> DeadLetters:
        """The dead letters of this outbox."""

    @property
    def totals(self) -> Totals:
        """Numbers since start."""

    def broken(self) -> str | None:
        """Return the reason why only a restart of the process helps; None while the outbox works."""

    def unreachable(self) -> str | None:
        """Return the reason why events can be neither fetched nor settled now; None while they can, full or not."""

    async def watch(self) -> None:
        """Never return, but raise the error that ends the outbox.

        Raises:
            OutboxUnusableError: the store, once it could be reached, turned out to be unusable.
        """

    async def flush(self) -> None:
        """Return once every settlement made before is on disk."""

    async def close(self) -> None:
        """Flush and release the store."""
