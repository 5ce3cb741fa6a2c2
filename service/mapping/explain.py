"""The origin of each part of a record, and the values of an event that reach no record."""

from collections.abc import Iterable
from dataclasses import dataclass

from pointillist_destination.v1 import event_pb2
from service.mapping.event_path import Path, leaves
from service.mapping.event_time import event_moment
from service.mapping.plan import Entry, Plan
from service.mapping.rules import Row


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of one label, number or identifier."""

    path: str
    """The path of the value in the event, in Segment's own names, such as `context.device.advertisingId`."""
    row: str
    """The row that took it, such as `track row 3 (context.traits)`; `built in` for userId and anonymousId."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The origins of the parts of one event's record."""

    labels: dict[str, Origin]
    """By the label's name."""
    numbers: dict[str, Origin]
    """By the number's name."""
    actors: dict[str, Origin]
    """By the class and the name of the identifier, such as `Customer.userId`."""
    unused: tuple[str, ...]
    """The paths, sorted, of the event's values (arrays count as one) that are in no part of the record."""


def explain(
    plan: Plan, rows: tuple[Row, ...], message: event_pb2.Identify | event_pb2.Track, accepted_at: int
) -> Explanation:
    """Explain the record of one event.

    Args:
        plan: the rows, compiled.
        rows: the rows that the plan was compiled from.
        message: the event.
        accepted_at: when the service took the event, in milliseconds since the epoch.
    """
    event_type = message.DESCRIPTOR.name.lower()
    labels, numbers = plan.entries(message)
    actors = {entry.name: entry for entry in plan.actor_entries(message)}
    taken: set[Path] = {("event",)}
    taken.update((field,) for field in event_moment(message, accepted_at)[1])
    taken.update(entry.path for entries in (labels, numbers, actors) for entry in entries.values())
    unused = {".".join(path) for path, _, _ in leaves(message) if path not in taken}

    def origins(entries: Iterable[tuple[str, Entry]]) -> dict[str, Origin]:
        return {
            name: Origin(
                ".".join(entry.path),
                f"{event_type} row {entry.row} ({rows[entry.row - 1].source})" if entry.row else "built in",
            )
            for name, entry in sorted(entries)
        }

    return Explanation(
        labels=origins(labels.items()),
        numbers=origins(numbers.items()),
        actors=origins(actors.items()),
        unused=tuple(sorted(unused)),
    )
