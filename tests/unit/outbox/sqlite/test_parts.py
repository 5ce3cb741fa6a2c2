"""The parts of a group commit that failed as a whole."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import OutboxDamagedError, OutboxUnavailableError
from service.outbox.sqlite.group_commit import Counts
from service.outbox.sqlite.parts import Part, execute_parts


class Store:
    """A store of numbers, in transactions, of which some numbers cannot be stored."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.stored: list[int] = []
        self.transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[Counts]:
        before = list(self.stored)
        self.transactions += 1
        try:
            yield Counts(0, 0, 0, 0)
        except Exception:
            self.stored = before
            raise

    def part(self, number: int) -> Part:
        def run(_: Counts) -> int:
            self.stored.append(number)
            if number in self.bad:
                raise OutboxDamagedError("damaged", 1.0) if number % 2 else ZeroDivisionError
            return number

        return Part(run)


@given(count=st.integers(0, 40), bad=st.sets(st.integers(0, 39), max_size=5))
def test_only_those_fail_that_fail_by_themselves_and_the_others_are_stored_once(count: int, bad: set[int]) -> None:
    store = Store(bad)
    parts = [store.part(number) for number in range(count)]

    execute_parts(store.transaction, parts)

    good = [number for number in range(count) if number not in bad]
    assert store.stored == good
    assert [part.outcome for part in parts if part.is_stored] == good
    assert all(part.is_done for part in parts)
    assert store.transactions <= 1 + 2 * 6 * len(bad)


def test_a_disk_that_refuses_meanwhile_leaves_the_rest_undone() -> None:
    # given
    store = Store({1})
    parts = [store.part(number) for number in range(4)]

    def refuse(_: Counts) -> None:
        raise OutboxUnavailableError("no", 1.0)

    parts[3].run = refuse

    # when
    with pytest.raises(OutboxUnavailableError, match="no"):
        execute_parts(store.transaction, parts)

    # then
    assert [part.is_done for part in parts] == [True, True, False, False]
    assert store.stored == [0]
