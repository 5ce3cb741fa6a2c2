"""Puts to the stream of pending events, and the reasons to make no more for a while."""

from collections.abc import Callable, Sequence

from service.clock import Clock
from service.errors import JetStreamError, OutboxFullError, OutboxUnavailableError
from service.outbox.base import Entry
from service.outbox.capacity import DELAY, REFUSED_PAUSE, repeat
from service.outbox.jetstream.headers import entry_headers
from service.outbox.jetstream.publisher import Message, Publisher
from service.outbox.jetstream.streams import Plan

MAX_SILENCE = 5.0  # seconds without an acknowledgement, while puts wait for one, before new events are refused


class Puts:
    """Publishes events. Those that are being published count in the bounds of the outbox."""

    def __init__(self, publisher: Publisher, plan: Plan, clock: Clock) -> None:
        self._publisher = publisher
        self._plan = plan
        self._clock = clock
        self._calls = 0
        self.events = 0
        """Events being published."""
        self.bytes = 0
        self._refused_until = float("-inf")  # seconds, by the steady clock
        self._refused: Callable[[float], OutboxUnavailableError] | None = None
        self._silent_since: float | None = None  # the first put since the last acknowledgement

    async def publish(self, entries: Sequence[Entry], queued_at: int) -> list[int]:
        """Publish events with different message_ids, queued at a time in milliseconds, as Publisher.publish does.

        Raises:
            OutboxUnavailableError: as Publisher.publish does.
        """
        answer_to = self._plan.deliveries_subject
        messages = [Message(entry.payload, entry_headers(entry, queued_at, answer_to)) for entry in entries]
        size = sum(len(entry.payload) for entry in entries)
        if self._silent_since is None:
            self._silent_since = self._clock.steady()
        self._calls, self.events, self.bytes = self._calls + 1, self.events + len(entries), self.bytes + size
        try:
            originals = await self._publisher.publish(self._plan.events_subject, messages)
        except (OutboxFullError, JetStreamError) as error:  # the stream would refuse further events as well
            self._refused = repeat(error)
            self._refused_until = self._clock.steady() + REFUSED_PAUSE
            self._silent_since = None
            raise
        finally:
            self._calls, self.events, self.bytes = self._calls - 1, self.events - len(entries), self.bytes - size
        self._silent_since = self._clock.steady() if self._calls else None
        return originals

    def refusal(self, retry_after: float) -> OutboxUnavailableError | None:
        """Return the error with which a put would most likely end now, if any.

        Args:
            retry_after: seconds until a full stream has capacity again.
        """
        now = self._clock.steady()
        if self._silent_since is not None and now - self._silent_since > MAX_SILENCE:
            return OutboxUnavailableError(f"the stream has not acknowledged an event for {MAX_SILENCE:.0f} s", DELAY)
        return self._refused(retry_after) if self._refused is not None and now < self._refused_until else None

    def note_answer(self) -> None:
        """Note that JetStream answers: without a put that waits, the next one may be made."""
        if not self._calls:
            self._silent_since = None
