"""The parts of a group commit that failed as a whole: executed in halves, so that only those fail that must."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from service.errors import OutboxDamagedError, OutboxUnavailableError
from service.outbox.sqlite.group_commit import Counts


@dataclass(slots=True)
class Part:
    """One settlement, put or call, and its outcome."""

    run: Callable[[Counts], Any]
    """Executes it within a transaction."""
    is_done: bool = False
    """False if the disk refused before it could be executed."""
    outcome: Any = None
    """Its result, once it is on disk; or the error with which it failed by itself."""

    @property
    def is_stored(self) -> bool:
        """True if it is on disk."""
        return self.is_done and not isinstance(self.outcome, Exception)


def execute_parts(transaction: Callable[[], AbstractContextManager[Counts]], parts: Sequence[Part]) -> None:
    """Execute parts in as few transactions as it takes to find those that fail by themselves.

    Raises:
        OutboxUnavailableError: the disk refuses writes; some parts may be done, and keep their outcome.
    """
    if not parts:
        return
    try:
        with transaction() as change:
            results = [part.run(change) for part in parts]
    except Exception as error:
        if isinstance(error, OutboxUnavailableError) and not isinstance(error, OutboxDamagedError):
            raise
        if len(parts) == 1:
            parts[0].is_done, parts[0].outcome = True, error
            return
        half = len(parts) // 2
        execute_parts(transaction, parts[:half])
        execute_parts(transaction, parts[half:])
    else:
        for part, result in zip(parts, results, strict=True):
            part.is_done, part.outcome = True, result
