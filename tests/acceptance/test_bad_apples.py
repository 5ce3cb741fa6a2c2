"""Events that fail stop no others, on the real service; `python -m tests.acceptance.bad_apples` prints the table."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.bad_apples import LATE, SCENARIOS, Scenario, run, soak
from tests.support.sizes import sized

SHORT = [replace(SCENARIOS[0], seconds=2, burst_at=0.5), replace(SCENARIOS[1], seconds=2, burst_at=0.5)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("scenario", sized(SHORT, SCENARIOS), ids=lambda scenario: scenario.name)
async def test_events_that_fail_do_not_stop_the_others(tmp_path: Path, scenario: Scenario, workers: int) -> None:
    outcome = await run(scenario, tmp_path, workers)
    assert outcome.delivered == outcome.sent
    assert outcome.late <= 60


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
async def test_classes_that_fail_and_recover_while_the_server_is_killed_lose_nothing(
    tmp_path: Path, workers: int
) -> None:
    soaked = await soak(sized(1, 10), tmp_path, workers)
    assert soaked.lost == 0
    assert soaked.late <= LATE
