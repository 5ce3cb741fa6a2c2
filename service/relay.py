"""The way out: take > map > send > ack | nak | term.

As many lanes run as the flow allows. A lane takes one event after another from a small window that is refilled from
the outbox; it is a task while there is something to send, and nothing waits in it: an event that must be tried again
goes back into the outbox with its time, and holds no task, no connection and no memory.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable

import structlog

from pointillist_destination.v1 import event_pb2
from service.answer import Answer
from service.clock import Clock, Timer
from service.deliveries import Deliveries
from service.flow import Cause, Flow, State
from service.mapping import Mapping
from service.outbox.base import Outbox, Refusal, Stored
from service.pointillist import Pointillist
from service.retry import RetryDecision, Verdict, decide
from service.telemetry import Metrics
from service.tracing import Tracing

WINDOW_MOST = 1024  # events held in memory, waiting for a lane
WINDOW_LANES = 8  # events held for each lane; with fewer the lanes run dry while the outbox is read
TELL_INTERVAL = 10.0  # seconds between log lines about dead letters
FAULT_DELAY = 60.0  # seconds until an event on which our own code failed is tried again

log = structlog.get_logger()


class Relay:
    """The relay of one process."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        mapping: Callable[[], Mapping],
        pointillist: Pointillist,
        flow: Flow,
        deliveries: Deliveries,
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
            mapping: gives the mapping in force.
            pointillist: where it sends.
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
        self._mapping = mapping
        self._pointillist = pointillist
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
        self._lanes: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._may_have_more = True  # whether a fetch may find something
        self._dead_letters_untold: Counter[str] = Counter()
        self._told_at = float("-inf")
        self._stopping = False
        outbox.subscribe(self.look)

    @property
    def in_flight(self) -> int:
        """How many events are being sent."""
        return len(self._lanes)

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
            await self._refill(now)
            self._open_lanes()
            await self._sleep(self._next_change(now))

    async def stop(self, grace: float) -> None:
        """Send nothing new; let what is in flight end for `grace` seconds, then leave it to the next start."""
        self._stopping = True
        self._wake.set()
        if self._lanes:
            _, pending = await asyncio.wait(self._lanes, timeout=grace)
            for lane in pending:
                lane.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    # -- taking

    async def _refill(self, now: float) -> None:
        """Fill the window from the outbox, as far as the flow allows."""
        limit = self._flow.limit(now)
        if limit == 0:
            return
        is_probing = self._flow.state is State.PROBING
        wanted = (1 if is_probing else min(WINDOW_LANES * limit, WINDOW_MOST)) - len(self._window)
        if wanted <= 0 or not (self._may_have_more or is_probing) or (is_probing and self._lanes):
            return
        self._may_have_more = False
        events = await self._outbox.fetch(wanted, early=is_probing)
        self._window.extend(events)
        if len(events) == wanted:
            self._may_have_more = True

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

    # -- sending

    def _open_lanes(self) -> None:
        room = self._flow.limit(self._clock.steady()) - len(self._lanes)
        for _ in range(min(room, len(self._window))):
            lane = asyncio.create_task(self._run_lane())
            self._lanes.add(lane)
            lane.add_done_callback(self._close_lane)

    def _close_lane(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        self._wake.set()

    async def _run_lane(self) -> None:
        """Send one event after another while the flow allows as many lanes as there are."""
        window = self._window
        while window and not self._stopping:
            limit = self._flow.limit(self._clock.steady())
            if len(self._lanes) > limit:
                return
            stored = window.popleft()
            if self._may_have_more and len(window) < WINDOW_LANES * limit // 2:
                self._wake.set()
            try:
                await self._deliver(stored)
            except Exception:
                log.exception("unforeseen error; the event is kept and tried again", message_id=stored.message_id)
                if not self._expire(stored, self._clock.steady(), None, "an unforeseen error of this service"):
                    self._outbox.nak(stored, FAULT_DELAY)

    async def _deliver(self, stored: Stored) -> None:
        event = event_pb2.Event.FromString(stored.payload)
        body = self._mapping().encode(event, stored.accepted_at)
        sent_at = self._clock.steady()
        answer = await self._pointillist.post(body, stored.message_id)
        now = self._clock.steady()
        if self._tracing is not None:
            self._tracing.attempt(stored.traceparent, stored.attempts + 1, answer, sent_at, now)
        decision = decide(answer, stored.attempts + 1, max_delay=self._retry_max_delay, random=self._random)
        self._metrics.count_delivery(decision.reason, now - sent_at)
        verdict = self._flow.answered(
            decision,
            sent_at=sent_at,
            now=now,
            in_flight=len(self._lanes),
            retry_after=min(answer.retry_after or 0.0, self._retry_max_delay),
        )
        self._settle(stored, answer, decision, verdict, now)

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
