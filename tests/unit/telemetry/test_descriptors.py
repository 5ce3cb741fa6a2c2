"""Open descriptors: what is said as they become few, and the limit that is raised at the start."""

import resource

import pytest
import structlog

from service.telemetry.descriptors import REPEATED_AFTER, Descriptors, raise_limit, used_share


def levels(shares: list[float]) -> list[str]:
    """The levels of what is logged at each of these looks."""
    descriptors = Descriptors()
    with structlog.testing.capture_logs() as logged:
        for share in shares:
            descriptors.note(share)
    return [line["log_level"] for line in logged]


@pytest.mark.parametrize(
    ("shares", "logged"),
    [
        ([0.1, 0.79], []),
        ([0.8, 0.9], ["warning"]),
        ([0.8, 0.95, 1.0], ["warning", "error"]),
        ([0.96, 0.1, 0.1], ["error", "info"]),
        ([0.96, 0.85, 0.1], ["error", "warning", "info"]),
        ([0.9] * (REPEATED_AFTER + 1), ["warning", "warning"]),
    ],
)
def test_what_is_said_as_they_become_few_and_many_again(shares: list[float], logged: list[str]) -> None:
    assert levels(shares) == logged


def test_the_soft_limit_becomes_the_hard_one_and_the_share_follows_it() -> None:
    # given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        small = used_share()

        # when
        with structlog.testing.capture_logs() as logged:
            raise_limit()

        # then
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert [(line["limit"], line["raised_from"]) for line in logged] == [(hard, 100)]
        assert used_share() < small
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
