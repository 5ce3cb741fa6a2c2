"""Answers that are not read: each caller has its share, and gets one whatever others hold."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.intake.answer_budget import AnswerBudget

MOST, SHARE = 100, 40
steps = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(0, 60), st.booleans()), max_size=60)


@given(steps)
def test_bytes_and_answers_are_bounded_and_all_are_given_back(steps: list[tuple[str, int, bool]]) -> None:
    # given
    budget = AnswerBudget(MOST, SHARE)
    held: list[tuple[str, int]] = []

    # when
    for owner, size, takes in steps:
        mine = sum(size for other, size in held if other == owner)
        if not takes and held:
            budget.give_back(*held.pop(0))
        elif budget.take(owner, size):
            held.append((owner, size))
            assert not size or not mine or (mine + size <= SHARE and budget.bytes <= MOST)
        else:
            assert mine

        # then
        assert budget.bytes == sum(size for _, size in held)
        assert budget.number == len(held)
        assert budget.number_of == Counter(owner for owner, _ in held if owner)
    for one in held:
        budget.give_back(*one)
    assert (budget.bytes, budget.number, budget.number_of) == (0, 0, Counter())
