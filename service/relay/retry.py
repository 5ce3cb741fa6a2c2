"""The decision on an event after a POST, from the answer and the number of attempts. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from service.pointillist.answer import Answer, Failure

FIRST_DELAY = 0.5  # seconds; the longest wait after the first attempt, doubled with every further one
MOST_DOUBLINGS = 64  # far beyond any cap, and short of the range of a float

TRANSIENT = frozenset({408, 409, 425, 429})
"""4xx answers that may pass by themselves; so does every 5xx but 501."""

WRONG_SETUP = frozenset({401, 402, 403, 404, 405, 407, 410, 421, 426, 501})
"""Answers that speak of the token, the address or the account, not of the event; so does every 3xx, because a
redirect is never followed."""


class Verdict(StrEnum):
    """The ways to settle an event, in JetStream's words, and one that asks more than settling."""

    ACK = "ack"
    """Delivered."""
    NAK = "nak"
    """Try again later."""
    TERM = "term"
    """Give up: a dead letter."""
    SETUP = "setup"
    """The set-up is wrong, not the event: the relay pauses, and the event is kept."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The decision on one event.

    Attributes:
        verdict: how to settle it.
        delay: seconds until it is tried again; 0.0 for ACK and TERM. For SETUP it is the delay of an event that is
            refused so while others pass.
        slow_down: the whole relay is asked to slow, not only this event.
        overload: a sign that Pointillist has too much to do: fewer requests at a time are in order.
        reason: why, from a bounded vocabulary: "2xx", any other status in digits, or a `Failure`.
    """

    verdict: Verdict
    delay: float
    slow_down: bool
    overload: bool
    reason: str


_ACK = RetryDecision(Verdict.ACK, delay=0.0, slow_down=False, overload=False, reason="2xx")


def decide(answer: Answer, attempts: int, *, max_delay: float, random: Callable[[], float]) -> RetryDecision:
    """Decide on an event.

    Args:
        answer: to the POST.
        attempts: attempts made so far, this one included; 1 or more.
        max_delay: seconds; the longest delay, and the most of a Retry-After that is honoured.
        random: gives numbers from 0 up to and not including 1, evenly, such as `random.random`.
    """
    status = answer.status
    if status is not None and 200 <= status <= 299:
        return _ACK
    verdict = Verdict.NAK if status is None else _verdict(status)
    again = verdict in (Verdict.NAK, Verdict.SETUP)
    return RetryDecision(
        verdict,
        delay=_delay(attempts, answer.retry_after, max_delay, random) if again else 0.0,
        slow_down=status == 429,
        overload=verdict is Verdict.NAK and _is_overload(answer),
        reason=(answer.failure or Failure.OTHER).value if status is None else str(status),
    )


def _verdict(status: int) -> Verdict:
    """Give the verdict on a status that is not 2xx; one outside 300 to 599 means nothing, so the event is kept."""
    if status in WRONG_SETUP or 300 <= status <= 399:
        return Verdict.SETUP
    if 400 <= status <= 499 and status not in TRANSIENT:
        return Verdict.TERM
    return Verdict.NAK


def _is_overload(answer: Answer) -> bool:
    """Say whether an answer to be tried again is a sign of overload: 429, 5xx or a timeout."""
    if answer.status is None:
        return answer.failure is Failure.TIMEOUT
    return answer.status == 429 or 500 <= answer.status <= 599


def _delay(attempts: int, retry_after: float | None, max_delay: float, random: Callable[[], float]) -> float:
    """Back off: full jitter under a doubling cap, on top of the delay that the server asks for, `max_delay` at most.

    The jitter goes on top of Retry-After, so that events with the same delay do not all return at once.
    """
    longest = min(max_delay, FIRST_DELAY * 2.0 ** min(attempts - 1, MOST_DOUBLINGS))
    return min(max_delay, (retry_after or 0.0) + random() * longest)
