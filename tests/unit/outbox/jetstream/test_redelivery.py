"""The notes on events that were put back into a JetStream."""

from hypothesis import given
from hypothesis import strategies as st

from service.outbox.jetstream.redelivery import MAX_REMEMBERED, SAFE_LEAD, Note, Redeliveries

FAR = 1000.0


def note(due_at: float, attempts: int = 1) -> Note:
    return Note(f"reply-{due_at}", due_at, attempts, None)


def test_what_was_put_back_is_remembered_until_it_comes_again() -> None:
    redeliveries = Redeliveries()
    redeliveries.add(1, note(FAR, attempts=3))
    assert redeliveries.take(1) == note(FAR, attempts=3)
    assert redeliveries.take(1) is None


@given(st.lists(st.floats(FAR, 2 * FAR), max_size=20, unique=True), st.integers(0, 20))
def test_events_are_recalled_by_their_due_times_each_once(due: list[float], limit: int) -> None:
    redeliveries = Redeliveries()
    for id_, due_at in enumerate(due):
        redeliveries.add(id_, note(due_at))
    first, rest = redeliveries.recall(limit, 0.0), redeliveries.recall(len(due), 0.0)
    assert first + rest == [note(due_at).reply for due_at in sorted(due)]
    assert len(first) == min(limit, len(due))


def test_an_event_whose_time_is_near_is_left_to_come_by_itself() -> None:
    redeliveries = Redeliveries()
    redeliveries.add(1, note(FAR))
    assert redeliveries.recall(1, FAR - SAFE_LEAD) == []


def test_an_event_that_came_again_and_was_put_back_again_is_recalled_by_its_last_reply() -> None:
    redeliveries = Redeliveries()
    redeliveries.add(1, note(FAR))
    redeliveries.take(1)
    redeliveries.add(1, note(FAR + 1))
    assert redeliveries.recall(5, 0.0) == [note(FAR + 1).reply]


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    redeliveries = Redeliveries()
    for id_ in range(3 * MAX_REMEMBERED):
        redeliveries.add(id_, note(FAR + id_))
    assert redeliveries.take(0) is None
    assert redeliveries.take(3 * MAX_REMEMBERED - 1) is not None
    assert len(redeliveries.recall(3 * MAX_REMEMBERED, 0.0)) == MAX_REMEMBERED - 1
