"""The differences for which streams and a consumer of an operator are refused."""

from typing import Any

import pytest

from service.outbox.jetstream.streams import Plan, consumer_differences, stream_differences

PLAN = Plan("P", bytes=1000, duplicate_window=60.0)


@pytest.mark.parametrize("wanted", [PLAN.events_config(), PLAN.letters_config()])
def test_a_stream_as_we_make_it_will_do(wanted: dict[str, Any]) -> None:
    assert list(stream_differences(wanted, wanted)) == []


def test_a_consumer_as_we_make_it_will_do() -> None:
    assert list(consumer_differences(PLAN.consumer_config())) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"retention": "limits"}, "retention is limits, and must be workqueue"),
        ({"storage": "memory"}, "storage is memory, and must be file"),
        ({"discard": "old"}, "discard is old, and must be new"),
        ({"subjects": ["else"]}, "subjects are ['else'], and must include P.events"),
        ({"max_age": 1}, "max_age is set, and must be 0"),
        ({"max_msgs_per_subject": 5}, "max_msgs_per_subject is set, and must be -1"),
        ({"max_msg_size": 1000}, "max_msg_size is 1000, and must be -1 or at least 65536"),
        ({"no_ack": True}, "no_ack is set, and must not be"),
        ({"sealed": True}, "sealed is set, and must not be"),
        ({"persist_mode": "async"}, "persist_mode is async, and must be default"),
        ({"duplicate_window": 120_000_000_000}, "duplicate_window is 120 s, and POINTILLIST_DUPLICATE_WINDOW is 60 s"),
    ],
)
def test_a_stream_that_would_lose_hide_or_hold_up_events_is_told_of(changed: dict[str, Any], difference: str) -> None:
    wanted = PLAN.events_config()
    [told] = stream_differences(wanted | changed, wanted)
    assert told.startswith(difference)


def test_a_stream_keeps_its_window_where_none_is_set() -> None:
    wanted = Plan("P").events_config()
    assert list(stream_differences(wanted | {"duplicate_window": 5}, wanted)) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"ack_policy": "none"}, "ack_policy is none, and must be explicit"),
        ({"deliver_policy": "new"}, "deliver_policy is new, and must be all"),
        ({"replay_policy": "original"}, "replay_policy is original, and must be instant"),
        ({"max_deliver": 5}, "max_deliver is 5, and must be -1"),
        ({"max_ack_pending": 1000}, "max_ack_pending is 1000, and must be -1 or at least 10000"),
        ({"ack_wait": 1_000_000_000}, "ack_wait is 1 s, and must be at least 5 s"),
        ({"deliver_subject": "push"}, "deliver_subject is set, and must not be"),
        ({"filter_subject": "a"}, "filter_subject is set, and must not be"),
        ({"backoff": [1]}, "backoff is set, and must not be"),
        ({"max_batch": 10}, "max_batch is set, and must not be"),
    ],
)
def test_a_consumer_that_would_lose_or_hold_up_events_is_told_of(changed: dict[str, Any], difference: str) -> None:
    [told] = consumer_differences(PLAN.consumer_config() | changed)
    assert told.startswith(difference)


def test_a_consumer_without_a_limit_of_what_is_pending_will_do() -> None:
    assert list(consumer_differences(PLAN.consumer_config() | {"max_ack_pending": -1})) == []
