"""The sandbox's behaviour: what may be asked of it, and how it is drawn."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import SettingsError
from service.sandbox.behaviour import Behaviour

# A busy machine is no fault of the code.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

answers = st.integers(200, 599).map(str) | st.sampled_from(["drop", "hang", "truncate"])
weights = st.integers(0, 1000) | st.floats(0, 1000)
behaviours = st.builds(
    Behaviour,
    st.dictionaries(answers, weights, max_size=5).filter(lambda drawn: not drawn or sum(drawn.values()) > 0),
    st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000),
    st.none() | st.integers(0, 10**6).map(lambda seconds: f"{seconds}s"),
)


@unhurried
@given(behaviours)
def test_the_json_form_reads_back_as_the_same_behaviour(behaviour: Behaviour) -> None:
    assert Behaviour.from_json(behaviour.as_json()) == behaviour


@unhurried
@given(behaviours, st.integers())
def test_an_answer_of_no_weight_is_never_drawn(behaviour: Behaviour, seed: int) -> None:
    assert behaviour.answers[behaviour.draw(Random(seed))] > 0


def test_the_json_form_shows_durations_as_they_were_given() -> None:
    # given
    given_form = {"answers": {"200": 0.7, "503": 0.2, "drop": 0.1}, "delay": "50ms", "retry_after": "5s"}

    # when
    behaviour = Behaviour.from_json(given_form)

    # then
    assert behaviour.delay == 0.05
    assert behaviour.as_json() == given_form


def test_weights_need_not_add_up_to_one() -> None:
    # given
    behaviour = Behaviour({"200": 3, "503": 1})
    random = Random(7)

    # when
    drawn = Counter(behaviour.draw(random) for _ in range(4000))

    # then
    assert set(drawn) == {"200", "503"}
    assert 2800 < drawn["200"] < 3200


@pytest.mark.parametrize("value", [{}, {"answers": {}}, {"delay": 0}, {"delay": "0s", "retry_after": None}])
def test_what_is_left_out_gets_its_default(value: dict[str, Any]) -> None:
    assert Behaviour.from_json(value) == Behaviour({"200": 1.0}, 0.0, None)


def test_a_retry_after_is_rounded_up_to_whole_seconds() -> None:
    assert Behaviour(retry_after="1500ms").retry_after_seconds == 2
    assert Behaviour(retry_after="0s").retry_after_seconds == 0
    assert Behaviour().retry_after_seconds is None


def test_the_answers_are_a_copy_that_cannot_be_changed() -> None:
    # given
    mine = {"503": 1.0}
    behaviour = Behaviour(mine)

    # when
    mine["200"] = 1.0

    # then
    assert behaviour.answers == {"503": 1.0}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "a behaviour is a JSON object"),
        (None, "a behaviour is a JSON object"),
        ({"retry-after": "5s"}, "unknown key retry-after; the keys are"),
        ({"answers": ["200"]}, "answers: expected an object of weights"),
        ({"answers": {"199": 1}}, "answers: '199' is no status"),
        ({"answers": {"600": 1}}, "answers: '600' is no status"),
        ({"answers": {"2xx": 1}}, "answers: '2xx' is no status"),
        ({"answers": {"reset": 1}}, "answers: 'reset' is no status"),
        ({"answers": {"200": -1}}, "answers: the weight of 200 is -1"),
        ({"answers": {"200": "1"}}, "answers: the weight of 200 is '1'"),
        ({"answers": {"200": True}}, "answers: the weight of 200 is True"),
        ({"answers": {"200": None}}, "answers: the weight of 200 is None"),
        ({"answers": {"200": 0, "503": 0}}, "answers: the weights add up to 0"),
        ({"answers": {"200": 1e308, "503": 1e308}}, "answers: the weights add up to inf"),
        ({"delay": "soon"}, "delay: 'soon' is not a duration"),
        ({"delay": 5}, "delay: '5' is not a duration"),
        ({"delay": "-1s"}, "delay: '-1s' is not a duration"),
        ({"delay": None}, "delay: 'None' is not a duration"),
        ({"retry_after": "soon"}, "retry_after: 'soon' is not a duration"),
        ({"retry_after": 5}, "retry_after: 5 is not a duration in quotes"),
    ],
)
def test_a_behaviour_that_cannot_be_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Behaviour.from_json(value)

    assert str(refusal.value).startswith(place)


@pytest.mark.parametrize("delay", [-0.1, float("nan"), float("inf"), True])
def test_a_delay_in_code_is_a_finite_number_of_seconds(delay: float) -> None:
    with pytest.raises(SettingsError, match=r"delay: .* is not a number of seconds"):
        Behaviour(delay=delay)
