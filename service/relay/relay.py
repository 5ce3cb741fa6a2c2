"""The way out: fetch > map > POST > ack | nak | term.

The relay keeps small windows filled from the outbox, of first tries and of repeats, hands a sender as many events at a
time as the flow allows, and settles each by its answer.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from service.clock import Clock, Timer
from service.errors import OutboxUnavailableError
from service.outbox.base import UNREADABLE, Pick, Queue, Refusal, Stored
from service.outbox.deliveries import DeliveryWaiters
from service.pointillist.answer import Answer, Failure
from service.relay.dead_letter_log import DeadLetterLog
from service.relay.expiry import Expiry
from service.relay.flow import Cause, Flow, Sent, State
from service.relay.retry import RetryDecision, Verdict, decide
from service.relay.sender import Sender
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

MAX_WINDOW = 1024  # first tries held in memory for the sender
WINDOW_FACTOR = 8  # first tries held per POST in flight; with fewer it runs dry while the outbox is read
MAX_REPEATS = 256  # repeats held in memory; a store that hands out more gets them back
REPEAT_PAUSE = 30.0  # seconds for which it does, on average
UNREADABLE_PAUSE = 1.0  # seconds after a fetch that failed
ERROR_DELAY = 60.0  # seconds until an event on which our own code failed is tried again

log = structlog.get_logger()


class Relay:
    """The relay of one process.

    Args:
        outbox: the events to deliver.
        sender: maps and POSTs them.
        flow: decides how many may be in flight.
        deliveries: notifies callers that wait for a delivery.
        metrics: counts.
        clock: measures.
        random: uniform in [0, 1), for jitter.
        max_age: seconds after which a failing event becomes a dead letter; see Expiry.
        retry_max_delay: maximum number of seconds between two attempts.
        dead_letters_most: number of dead letters at which the relay pauses.
        tracing: records a span per POST.
        passed: called at the first 2xx since the start, or since the flow began again.
    """

    def __init__(
        self,
        *,
        outbox: Queue,
        sender: Sender,
        flow: Flow,
        deliveries: DeliveryWaiters,
        metrics: Metrics,
        clock: Clock,
        random: Callable[[], float],
        max_age: float,
        retry_max_delay: float,
        dead_letters_most: int,
        tracing: Tracing | None = None,
        passed: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._flow = flow
        self._deliveries = deliveries
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._expiry = Expiry(max_age, clock)
        self._retry_max_delay = retry_max_delay
        self._dead_letters_most = dead_letters_most
        self._tracing = tracing
        self._passed = passed
        self._oldest: deque[Stored] = deque()  # first tries, from the front of the queue
        self._newest: deque[Stored] = deque()  # first tries, from its end
        self._repeats: deque[Stored] = deque()
        self._probes: deque[Stored] = deque()  # the next event to probe with, if one was fetched
        self._repeats_taken: set[int] = set()  # ids; handed to the sender and not settled
        self._from_end: set[int] = set()  # ids of `_newest` that were handed to the sender
        self._sent: dict[int, Sent] = {}
        self._wake = asyncio.Event()
        self._may_have_more = True  # a fetch may find first tries
        self._dead_letter_log = DeadLetterLog()
        self._is_readable = True
        self._stopping = False
        sender.serve(self)
        outbox.subscribe(self.wake)

    @property
    def in_flight(self) -> int:
        """Events in flight."""
        return self._sender.in_flight

    @property
    def is_able(self) -> bool:
        """True while events can be read, sent and settled."""
        return self._is_readable and self._sender.is_able and self._outbox.settles()

    def wake(self) -> None:
        """Check for events to fetch, and for POSTs that are allowed now."""
        self._may_have_more = True
        self._wake.set()

    async def run(self) -> None:
        """Relay until `stop`."""
        beat = self._metrics.heartbeats["relay"].inc
        while not self._stopping:
            beat()
            self._wake.clear()
            self._check_dead_letters()
            now = self._clock.steady()
            self._dead_letter_log.write(now)
            if self._flow.state is not State.FLOWING:
                self._give_back()
            await self._refill_if_readable(now)
            self._sender.wake()
            await self._sleep(self._next_change(now) if self._is_readable else UNREADABLE_PAUSE)

    async def stop(self, grace: float) -> None:
        """Send nothing new; wait `grace` seconds for POSTs in flight, then leave their events to the next start."""
        self._stopping = True
        self._wake.set()
        await self._sender.stop(grace)

    # -- fetching

    def _give_back(self) -> None:
        """Keep nothing but the next probe while nothing flows here: other relays may get through."""
        for stored in self._sender.give_back():
            self._untake(stored)
            self._outbox.release(stored)
        for window in (self._oldest, self._newest, self._repeats):
            while window:
                self._outbox.release(window.pop())
        if self._flow.state is State.PAUSED:
            while self._probes:
                self._outbox.release(self._probes.pop())

    async def _refill_if_readable(self, now: float) -> None:
        """Fill the windows, or note that the store cannot be read: events are accepted and settled meanwhile."""
        try:
            await self._refill(now)
        except OutboxUnavailableError as error:
            self._may_have_more = True
            if self._is_readable:
                log.error("cannot read the outbox; trying again", why=str(error))  # noqa: TRY400  no error of ours
            self._is_readable = False
        else:
            self._is_readable = True

    async def _refill(self, now: float) -> None:
        """Fill the windows from the outbox, as far as the flow allows."""
        limit = self._flow.limit(now)
        if limit == 0:
            return
        if self._flow.state is State.PROBING:
            for pick in self._flow.picks():
                if not self._probes:
                    self._probes.extend(await self._outbox.fetch(1, pick))
            return
        self._keep_probe()
        await self._refill_repeats(now)
        if self._flow.is_suspicious(now) and not self._newest:
            self._newest.extend(await self._outbox.fetch(limit, Pick.NEWEST))
        wanted = _window_size(limit) - len(self._oldest)
        if not self._may_have_more or not self._is_window_low(limit) or wanted <= 0:
            return
        self._may_have_more = False
        events = await self._outbox.fetch(wanted, Pick.NEW)
        self._sort(events)
        if len(events) == wanted:
            self._may_have_more = True

    def _keep_probe(self) -> None:
        """Send an event that was fetched for a probe like any other, once events flow again."""
        while self._probes:
            self._sort([self._probes.pop()])

    def _sort(self, events: list[Stored]) -> None:
        """Put fetched events into their windows; a store that replicas share hands out repeats unasked."""
        for stored in events:
            if not stored.attempts:
                self._oldest.append(stored)
            elif len(self._repeats) < MAX_REPEATS:
                self._repeats.append(stored)
            else:
                self._outbox.release(stored, REPEAT_PAUSE * (0.5 + self._random()))

    async def _refill_repeats(self, now: float) -> None:
        """Fetch as many repeats as may be sent now."""
        due = self._outbox.next_due()
        if due is None or due > 0:
            return
        wanted = self._repeats_allowed(now) - len(self._repeats)
        if wanted > 0:
            self._sort(await self._outbox.fetch(wanted, Pick.DUE))

    def _repeats_allowed(self, now: float) -> int:
        return self._flow.repeats(
            now, len(self._repeats_taken), others_wait=bool(self._oldest or self._newest or self._may_have_more)
        )

    def _is_window_low(self, limit: int) -> bool:
        """Return True if a fetch is due: half a window at a time, as it costs the same for one event as for many."""
        return len(self._oldest) <= _window_size(limit) // 2

    def _next_change(self, now: float) -> float | None:
        """Return the seconds until time alone changes the number of events that may be sent; None if it does not.

        Args:
            now: the time at which the windows were last filled; a later one might already allow more.
        """
        opens_at = self._flow.opens_at(now)
        if opens_at is not None:
            return opens_at - now
        if self._flow.state is not State.FLOWING:
            return None
        due = 0.0 if self._repeats else self._outbox.next_due()
        if due is None:
            return None
        repeats_at = self._flow.repeats_at(now)
        if repeats_at is not None:
            return max(due, repeats_at - now)
        return due if due > 0 or self._repeats_allowed(now) else None  # without a place, an answer wakes the relay

    async def _sleep(self, seconds: float | None) -> None:
        timer: Timer | None = None
        if seconds is not None and not self._wake.is_set():
            timer = self._clock.call_later(max(seconds, 0.001), self.wake)
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    # -- asked and reported by the sender: SenderHost

    def limit(self) -> int:
        """Return the number of events that may be in flight now."""
        return 0 if self._stopping or not self._outbox.settles() else self._flow.limit(self._clock.steady())

    def take(self, most: int) -> list[Stored]:
        """Return up to `most` events: repeats as far as they may be sent, then first tries; or one to probe with."""
        if self._flow.state is not State.FLOWING:
            taken = [self._probes.popleft()] if self._probes else []
            self._repeats_taken.update(stored.id for stored in taken if stored.attempts)
            return taken
        now = self._clock.steady()
        taken = []
        if self._repeats:
            for _ in range(min(most, len(self._repeats), self._repeats_allowed(now))):
                self._flow.take_repeat()
                taken.append(self._repeats.popleft())
                self._repeats_taken.add(taken[-1].id)
        oldest, newest = self._oldest, self._newest
        if not newest:  # nearly always
            taken += [oldest.popleft() for _ in range(min(most - len(taken), len(oldest)))]
        while newest and len(taken) < most:
            if not oldest or self._flow.takes_newest(now):
                taken.append(newest.popleft())
                self._from_end.add(taken[-1].id)
            else:
                taken.append(oldest.popleft())
        if self._may_have_more and self._is_window_low(self._flow.target):
            self._wake.set()
        return taken

    def sending(self, stored: Stored, now: float) -> None:
        """Count a POST that leaves."""
        is_newest = bool(self._from_end) and stored.id in self._from_end
        if is_newest:
            self._from_end.discard(stored.id)
        self._sent[stored.id] = self._flow.sent(now, is_repeat=stored.attempts > 0, is_newest=is_newest)

    def answered(self, stored: Stored, answer: Answer, sent_at: float, now: float) -> None:
        """Settle an event by the answer to its POST."""
        if self._tracing is not None:
            self._tracing.attempt(stored.traceparent, stored.attempts + 1, answer, sent_at, now)
        decision = decide(answer, stored.attempts + 1, max_delay=self._retry_max_delay, random=self._random)
        self._metrics.count_delivery(decision.reason, now - sent_at)
        if stored.attempts:
            self._repeats_taken.discard(stored.id)
        had_passed = self._flow.has_passed
        verdict = self._flow.answered(
            self._sent.pop(stored.id),
            decision,
            event=stored.id,
            now=now,
            waiting=self._count_pending,
            retry_after=min(answer.retry_after or 0.0, self._retry_max_delay),
        )
        if not had_passed and self._flow.has_passed:
            self._passed()
        self._settle(stored, answer, decision, verdict)

    def failed(self, stored: Stored, why: str) -> None:
        """Put an event back on which our own code failed, or give it up if that has lasted too long."""
        self._abandon(stored)
        if not self._expire(stored, None, why):
            self._outbox.nak(stored, ERROR_DELAY)

    def unreadable(self, stored: Stored) -> None:
        """Give up an event whose stored bytes do not parse; while there is no capacity for it, put it back."""
        self._abandon(stored)
        if self._has_capacity_for_dead_letter():
            self._term(stored, Refusal(UNREADABLE, None, "the stored bytes are not an Event: the disk changed them"))
        else:
            self._outbox.nak(stored, ERROR_DELAY)

    def lost(self, stored: Stored, why: str) -> None:
        """Put an event back whose answer will never come, as after a POST that failed, or give it up as too old."""
        self._abandon(stored)
        decision = decide(
            Answer(failure=Failure.OTHER, detail=why),
            stored.attempts + 1,
            max_delay=self._retry_max_delay,
            random=self._random,
        )
        if not self._expire(stored, None, why):
            self._outbox.nak(stored, decision.delay)

    def _count_pending(self) -> int:
        return self._outbox.stats().events

    def rested(self) -> None:
        """Check again for POSTs that are allowed."""
        self._wake.set()

    def _abandon(self, stored: Stored) -> None:
        """Forget the POST of an event, if one left."""
        self._from_end.discard(stored.id)
        self._repeats_taken.discard(stored.id)
        sent = self._sent.pop(stored.id, None)
        if sent is not None:
            self._flow.abandoned(sent, self._clock.steady())

    def _untake(self, stored: Stored) -> None:
        """Forget that the sender had an event."""
        self._from_end.discard(stored.id)
        if stored.attempts:
            self._repeats_taken.discard(stored.id)
            self._flow.give_back_repeat()

    # -- settling

    def _settle(self, stored: Stored, answer: Answer, decision: RetryDecision, verdict: Verdict) -> None:
        if verdict is Verdict.ACK:
            self._outbox.ack(stored)
            if stored.attempts:
                self._expiry.settled(stored)
            self._metrics.attempts.observe(stored.attempts + 1)
            self._deliveries.settled(stored.message_id, None)
            return
        if verdict is Verdict.TERM and self._has_capacity_for_dead_letter():
            self._term(stored, Refusal(decision.reason, answer.status, answer.body_start or answer.detail))
            return
        detail = f"{decision.reason}: {answer.detail or answer.body_start}"
        is_setup = decision.verdict is not Verdict.NAK and self._flow.state is not State.FLOWING
        if not self._expire(stored, answer.status, detail, is_setup=is_setup):
            self._outbox.nak(stored, decision.delay)

    def _expire(self, stored: Stored, status: int | None, detail: str, *, is_setup: bool = False) -> bool:
        """Count a failed try; return True if the event was too old, and is given up: never while the setup fails."""
        if not self._expiry.failed(stored) or is_setup or not self._has_capacity_for_dead_letter():
            return False
        self._term(stored, Refusal("max_age", status, detail))
        return True

    def _term(self, stored: Stored, refusal: Refusal) -> None:
        self._outbox.term(stored, refusal)
        self._expiry.settled(stored)
        self._check_dead_letters()
        self._metrics.count_dead_letter(refusal.reason)
        self._metrics.attempts.observe(stored.attempts + 1)
        self._dead_letter_log.count(refusal.reason)
        self._deliveries.settled(stored.message_id, refusal)

    def _has_capacity_for_dead_letter(self) -> bool:
        return self._outbox.stats().dead_letters < self._dead_letters_most

    def _check_dead_letters(self) -> None:
        """Pause while there is no capacity for dead letters, rather than drop one."""
        if not self._has_capacity_for_dead_letter():
            self._flow.pause(Cause.DEAD_LETTERS_FULL)
        else:
            self._flow.unpause(Cause.DEAD_LETTERS_FULL)


def _window_size(limit: int) -> int:
    return min(WINDOW_FACTOR * limit, MAX_WINDOW)
