"""Puts that wait for their group commit: nobody waits for many, and none overtakes one in bulk before it."""

import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.outbox.sqlite.group_commit import BULK_EVENTS, GroupCommit, Put, WaitingPuts
from tests.support.events import entry

ONE = entry(1)
CLOSED = asyncio.new_event_loop()
CLOSED.close()


class Line:
    """Puts that wait, each known by its number."""

    def __init__(self) -> None:
        self.puts = WaitingPuts()
        self.sent: list[Put] = []

    def add(self, events: int, *, in_bulk: bool) -> int:
        """Add a put; returns its number."""
        put = Put([ONE] * events, asyncio.Future(loop=CLOSED), events * len(ONE.payload))
        self.sent.append(put)
        self.puts.add(put, in_bulk=in_bulk)
        return len(self.sent) - 1

    def commit(self) -> list[int]:
        """Make a group commit; returns the numbers of its puts, in order."""
        work = GroupCommit()
        self.puts.fill(work)
        assert work.put_events == sum(len(put.entries) for put in work.puts)
        return [next(number for number, put in enumerate(self.sent) if put is one) for one in work.puts]


def test_bulk_leaves_every_other_commit_to_the_rest() -> None:
    # given
    line = Line()
    bulk = [line.add(BULK_EVENTS, in_bulk=True) for _ in range(3)]

    # when, then
    first = line.add(1, in_bulk=False)
    assert line.commit() == [first, bulk[0]]
    second = line.add(1, in_bulk=False)
    assert line.commit() == [second]
    third = line.add(1, in_bulk=False)
    assert line.commit() == [third, bulk[1]]
    assert line.commit() == [bulk[2]]
    assert line.commit() == []


def test_small_puts_in_bulk_share_a_commit_and_a_large_one_has_its_own() -> None:
    # given
    line = Line()
    some = [line.add(BULK_EVENTS // 2, in_bulk=True) for _ in range(3)]
    large = line.add(5 * BULK_EVENTS, in_bulk=True)

    # when, then
    assert [line.commit() for _ in range(3)] == [some[:2], some[2:], [large]]


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from([0, 1, 900, 2500]), st.booleans())), max_size=40))
def test_every_put_is_made_once_in_order_and_soon(steps: list[tuple[int, bool] | None]) -> None:
    # given
    line = Line()
    made: list[list[int]] = []  # by commit
    due: dict[int, int] = {}  # by number of a put that is not in bulk: the commit in which it has to be
    in_bulk: set[int] = set()

    # when
    for step in steps:
        if step is None:
            made.append(line.commit())
        else:
            number = line.add(step[0], in_bulk=step[1])
            if step[1]:
                in_bulk.add(number)
            else:
                due[number] = len(made)
    while line.puts:
        made.append(line.commit())

    # then
    order = [number for commit in made for number in commit]
    assert sorted(order) == list(range(len(line.sent)))
    assert (line.puts.events, line.puts.bytes) == (0, 0)
    for kind in (in_bulk, set(due)):
        assert [number for number in order if number in kind] == sorted(kind)
    assert all(number in made[commit] for number, commit in due.items())
    for number in in_bulk:  # no later one in bulk, and nothing that came before it is behind it
        assert all(order.index(earlier) < order.index(number) for earlier in due if earlier < number)
    for before, commit in itertools.pairwise(made):
        if in_bulk & set(before) and any(number in due for number in commit):
            assert not in_bulk & set(commit)
