"""Streams of large batches keep the server busy; small calls of others are answered all the same."""

from pathlib import Path

import pytest

from tests.acceptance.attacks import JUDGED_BATCHES
from tests.acceptance.neighbours import street
from tests.support.sizes import IS_FULL, sized

SECONDS = sized(1.5, 40.0)
MAX_P99 = 200.0  # ms


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.long) if "callers" in kind else kind for kind in JUDGED_BATCHES],
)
async def test_small_calls_are_answered_beside_streams_of_large_batches(tmp_path: Path, kind: str) -> None:
    async with street(tmp_path) as here:
        # when
        batches = await here.beside(lambda: JUDGED_BATCHES[kind](here, SECONDS))
        await here.until_delivered()
        await here.stop()

        # then
        print(f"{batches / SECONDS:.1f} batches/s")  # noqa: T201
        here.show()
        assert batches > 0
        for kind_of_caller, seen in here.seen.items():
            assert seen.ok_share == 1
            assert seen.missed_in_a_row == 0
            if IS_FULL and kind_of_caller != "health":
                assert seen.percentile(0.99) < MAX_P99
