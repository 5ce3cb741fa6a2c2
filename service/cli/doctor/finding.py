"""Findings of `doctor`, and those on any outbox: the age of its oldest event, and its dead letters."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.config.units import format_duration

OLD_EVENT = 3600.0  # seconds; an event that waits longer than that deserves a look


class Grade(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check."""

    check: str
    grade: Grade
    text: str
    advice: str = ""
    """The remedy; empty if none is needed."""


def age_finding(accepted_at: int, attempts: int | None) -> Finding:
    """Return a finding on the age of the oldest pending event.

    Args:
        accepted_at: milliseconds since the epoch.
        attempts: how often it was tried; None where the store does not know.
    """
    age = max(0.0, time.time() - accepted_at / 1000)
    text = f"the oldest event waits since {format_duration(round(age))}"
    if attempts is not None:
        text += f", after {count(attempts, 'attempt', 'attempts')}"
    if age > OLD_EVENT:
        advice = "is the server running? Its log says what Pointillist answers"
        return Finding("age", Grade.WARNING, text, advice)
    return Finding("age", Grade.OK, text)


def dead_letters_finding(number: int, reasons: Sequence[tuple[str, int]], most: int) -> Finding:
    """Return a finding on the number of dead letters, by reason.

    Args:
        number: how many.
        reasons: the commonest reasons, and how many have each.
        most: at how many the relay pauses.
    """
    if not number:
        return Finding("dead letters", Grade.OK, "none")
    text = f"{number}: " + ", ".join(f"{reason} ({many})" for reason, many in reasons)
    advice = "see pointillist-destination dead-letters list; fix the cause, then dead-letters replay"
    if number >= most:
        return Finding("dead letters", Grade.ERROR, text, "the relay is paused until there is room: " + advice)
    return Finding("dead letters", Grade.WARNING, text, advice)


def count(number: int, one: str, more: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else more}"
