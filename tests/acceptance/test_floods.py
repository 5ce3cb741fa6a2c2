"""Floods of calls on one connection, without a right token: honest callers are answered beside each."""

from pathlib import Path

import pytest

from tests.acceptance.attacks import FLOODS
from tests.acceptance.neighbours import street
from tests.support.sizes import IS_FULL, sized

SECONDS = sized(1.0, 10.0)
MAX_P50, MAX_P99 = 50.0, 500.0  # ms


@pytest.mark.parametrize("kind", FLOODS)
async def test_honest_callers_are_answered_beside_a_flood(tmp_path: Path, kind: str) -> None:
    async with street(tmp_path) as here:
        # when
        calls = await here.beside(lambda: FLOODS[kind](here, SECONDS))
        await here.until_delivered()
        await here.stop()

        # then
        print(f"{kind}: {calls / SECONDS:.0f} calls/s")  # noqa: T201
        here.show()
        assert calls > 0
        assert here.seen["track"].ok_share == here.seen["batch"].ok_share == 1
        if IS_FULL:
            for caller in ("track", "batch"):
                assert here.seen[caller].percentile(0.5) < MAX_P50
                assert here.seen[caller].percentile(0.99) < MAX_P99
