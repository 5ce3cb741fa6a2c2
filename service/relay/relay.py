"""The way out: take > map > send > ack | nak | term.

The relay keeps a small window filled from the outbox, lets a courier carry as many events at a time as the flow allows,
and settles what came of each.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable

import structlog

from service.clock import Clock, Timer
from service.outbox.base import Queue, Refusal, Stored
from service.outbox.deliveries import DeliveryWaiters
from service.pointillist.answer import Answer, Failure
from service.relay.flow import Cause, Flow, State
from service.relay.retry import RetryDecision, Verdict, decide
from service.relay.sender import Sender
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

MAX_WINDOW = 1024  # events held in memory, waiting for the courier
WINDOW_FACTOR = 8  # events held for each that may be under way; with fewer it runs dry while the outbox is read
TELL_INTERVAL = 10.0  # seconds between log lines about dead letters
FAULT_DELAY = 60.0  # seconds until an event on which our own code failed is tried again

log = structlog.get_logger()


class Relay:
    """The relay of one process."""

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
    ) -> None:
        """Make a relay; `run` makes it work.

        Args:
            outbox: what it empties.
            sender: who carries the events.
            flow: how much it may have in flight.
            deliveries: who wants to hear of a delivery.
            metrics: what it counts in.
            clock: its time.
            random: uniform in [0, 1), for jitter.
            max_age: seconds after which a failing event becomes a dead letter.
            retry_max_delay: seconds between two tries, at most.
            dead_letters_most: how many dead letters there may be before it pauses.
            tracing: makes a span of each POST.
        """
        self._outbox = outbox
        self._sender = sender
        self._flow = flow
        self._deliveries = deliveries
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._max_age = max_age
        self._retry_max_delay = retry_max_delay
        self._dead_letters_most = dead_letters_most
        self._tracing = tracing
        self._window: deque[Stored] = deque()
        self._wake = asyncio.Event()
        self._may_have_more = True  # whether a fetch may find something
        self._dead_letters_untold: Counter[str] = Counter()
        self._told_at = float("-inf")
        self._stopping = False
        sender.serve(self)
        outbox.subscribe(self.look)

    @property
    def in_flight(self) -> int:
        """How many events are being sent."""
        return self._sender.in_flight

    def look(self) -> None:
        """Something may be there to be fetched, or may be sent that could not be before."""
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
            self._tell_dead_letters(now)
            self._give_back()
            await self._refill(now)
            self._sender.look()
            await self._sleep(self._next_change(now))

    async def stop(self, grace: float) -> None:
        """Send nothing new; let what is in flight end for `grace` seconds, then leave it to the next start."""
        self._stopping = True
        self._wake.set()
        await self._sender.stop(grace)

    # -- taking

    def _give_back(self) -> None:
        """Keep no more than one event while nothing flows here: other relays may get through."""
        while len(self._window) > 1 and self._flow.state is not State.FLOWING:
            self._outbox.nak(self._window.popleft(), 0.0, attempted=False)

    async def _refill(self, now: float) -> None:
        """Fill the window from the outbox, as far as the flow allows."""
        limit = self._flow.limit(now)
        if limit == 0:
            return
        is_probing = self._flow.state is State.PROBING
        if not is_probing and not self._is_window_low(limit):
            return
        wanted = (1 if is_probing else _window_size(limit)) - len(self._window)
        if wanted <= 0 or not (self._may_have_more or is_probing) or (is_probing and self._sender.in_flight):
            return
        self._may_have_more = False
        events = await self._outbox.fetch(wanted, early=is_probing)
        self._window.extend(events)
        if len(events) == wanted:
            self._may_have_more = True

    def _is_window_low(self, limit: int) -> bool:
        """Whether a fetch is due: half a window at a time, as a fetch costs the same for one event as for a hundred."""
        return len(self._window) <= _window_size(limit) // 2

    def _next_change(self, now: float) -> float | None:
        """Seconds until time alone changes what may be sent; None where it does not.

        Args:
            now: when the window was last filled; a later moment might already have let it be filled further.
        """
        opens_at = self._flow.opens_at(now)
        if opens_at is not None:
            return opens_at - now
        if self._may_have_more or self._window or self._flow.state is not State.FLOWING:
            return None
        return self._outbox.next_due()

    async def _sleep(self, seconds: float | None) -> None:
        timer: Timer | None = None
        if seconds is not None and not self._wake.is_set():
            timer = self._clock.call_later(max(seconds, 0.001), self.look)
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    # -- what the courier asks and tells: Orders

    def limit(self) -> int:
        """How many events may be under way now."""
        return 0 if self._stopping else self._flow.limit(self._clock.steady())

    def take(self, most: int) -> list[Stored]:
        """Up to `most` events from the window."""
        window = self._window
        taken = [window.popleft() for _ in range(min(most, len(window)))]
        if self._may_have_more and self._is_window_low(self._flow.target):
            self._wake.set()
        return taken

    def answered(self, stored: Stored, answer: Answer, sent_at: float, now: float) -> None:
        """Settle an event by the answer to its POST."""
        if self._tracing is not None:
            self._tracing.attempt(stored.traceparent, stored.attempts + 1, answer, sent_at, now)
        decision = decide(answer, stored.attempts + 1, max_delay=self._retry_max_delay, random=self._random)
        self._metrics.count_delivery(decision.reason, now - sent_at)
        verdict = self._flow.answered(
            decision,
            sent_at=sent_at,
            now=now,
            in_flight=self._sender.in_flight,
            retry_after=min(answer.retry_after or 0.0, self._retry_max_delay),
        )
        self._settle(stored, answer, decision, verdict, now)

    def failed(self, stored: Stored, why: str) -> None:
        """Put an event back that came to nothing by a fault of ours, or give it up where that has lasted too long."""
        if not self._expire(stored, self._clock.steady(), None, why):
            self._outbox.nak(stored, FAULT_DELAY)

    def lost(self, stored: Stored, why: str) -> None:
        """Put an event back whose answer will never come, as after a POST that failed, or give it up as too old."""
        decision = decide(
            Answer(failure=Failure.OTHER, detail=why),
            stored.attempts + 1,
            max_delay=self._retry_max_delay,
            random=self._random,
        )
        if not self._expire(stored, self._clock.steady(), None, why):
            self._outbox.nak(stored, decision.delay)

    def rested(self) -> None:
        """Look what may be done now."""
        self._wake.set()

    # -- settling

    def _settle(self, stored: Stored, answer: Answer, decision: RetryDecision, verdict: Verdict, now: float) -> None:
        if verdict is Verdict.ACK:
            self._outbox.ack(stored)
            self._metrics.attempts.observe(stored.attempts + 1)
            self._deliveries.settled(stored.message_id, None)
            return
        if verdict is Verdict.TERM and self._has_room_for_dead_letter():
            self._term(stored, Refusal(decision.reason, answer.status, answer.body_start or answer.detail))
            return
        is_setup = decision.verdict is not Verdict.NAK and self._flow.state is not State.FLOWING
        detail = f"{decision.reason}: {answer.detail or answer.body_start}"
        if is_setup or not self._expire(stored, now, answer.status, detail):
            self._outbox.nak(stored, decision.delay)

    def _expire(self, stored: Stored, now: float, status: int | None, detail: str) -> bool:
        """Give up an event that has been tried for too long; returns whether it was given up."""
        if now - stored.queued_at / 1000 <= self._max_age or not self._has_room_for_dead_letter():
            return False
        self._term(stored, Refusal("max_age", status, detail))
        return True

    def _term(self, stored: Stored, refusal: Refusal) -> None:
        self._outbox.term(stored, refusal)
        self._check_dead_letters()
        self._metrics.count_dead_letter(refusal.reason)
        self._metrics.attempts.observe(stored.attempts + 1)
        self._dead_letters_untold[refusal.reason] += 1
        self._deliveries.settled(stored.message_id, refusal)

    def _has_room_for_dead_letter(self) -> bool:
        return self._outbox.stats().dead_letters < self._dead_letters_most

    def _check_dead_letters(self) -> None:
        """Pause while there is no room for dead letters, rather than drop one."""
        if not self._has_room_for_dead_letter():
            self._flow.pause(Cause.DEAD_LETTERS_FULL)
        else:
            self._flow.unpause(self._clock.steady())

    def _tell_dead_letters(self, now: float) -> None:
        """Log that events became dead letters; not one by one, as there may be very many."""
        if self._dead_letters_untold and now - self._told_at >= TELL_INTERVAL:
            log.warning(
                "events became dead letters",
                by_reason=dict(self._dead_letters_untold),
                advice="pointillist-destination dead-letters list says why; replay them once that is mended",
            )
            self._dead_letters_untold.clear()
            self._told_at = now


def _window_size(limit: int) -> int:
    return min(WINDOW_FACTOR * limit, MAX_WINDOW)
