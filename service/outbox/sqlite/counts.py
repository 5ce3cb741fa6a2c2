"""How much an outbox file holds."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """The counter row, or what a transaction adds to it."""

    events: int
    bytes: int
    seen: int
    dead_letters: int

    def __add__(self, change: "Counts") -> "Counts":
        """What is held once a transaction has changed it."""
        return Counts(
            self.events + change.events,
            self.bytes + change.bytes,
            self.seen + change.seen,
            self.dead_letters + change.dead_letters,
        )
