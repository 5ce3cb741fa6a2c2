"""How a choice of dead letters is said in SQL."""

from typing import Any

from service.outbox.base import DeadLetter, DeadLetterFilter, Refusal

COLUMNS = (
    "id, message_id, payload, accepted_at, reason, status, detail, attempts, first_attempt_at, last_attempt_at,"
    " traceparent"
)


def dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    """A dead letter from a row of COLUMNS."""
    id_, message_id, payload, accepted_at, reason, status, detail, *rest = row
    return DeadLetter(id_, message_id, payload, accepted_at, Refusal(reason, status, detail), *rest)


def where(which: DeadLetterFilter, after: int, until: int) -> tuple[str, list[Any]]:
    """The condition for such dead letters with an id above `after` and up to `until`, and its parameters."""
    conditions: list[str] = []
    parameters: list[Any] = []

    def add(condition: str, *values: object) -> None:
        conditions.append(condition)
        parameters.extend(values)

    add("id > ? AND id <= ?", after, until)
    if which.ids is not None:
        add(f"id IN ({','.join('?' * len(which.ids))})", *which.ids)
    if which.reason is not None:
        add("reason = ?", which.reason)
    if which.event_type is not None:
        add("event_type = ?", which.event_type)
    if which.user_id is not None:
        add("(user_id = ? OR anonymous_id = ?)", which.user_id, which.user_id)
    if which.since is not None:
        add("last_attempt_at >= ?", which.since)
    if which.until is not None:
        add("last_attempt_at < ?", which.until)
    return " AND ".join(conditions), parameters
