"""A disk that refuses, is full, hangs or is slow, while callers send and the server is killed: nothing is lost.

Nor is anything delivered twice without a crash, and memory stays within its bound. The disk is a library that is
preloaded into the server (faulty_disk.c). `python -m tests.acceptance.soak --disk-faults 100` runs the same for as long
as one likes.
"""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.acceptance.crashes import drawn_seed
from tests.acceptance.disk_faults import MAX_GROWTH, DiskFaultRun, DiskFaultVerdict
from tests.acceptance.oracle import Events, Evidence, Ledger, Repeats
from tests.support.preloading import why_no_preloading
from tests.support.sizes import sized

FAULTS = sized(4, 20)


@pytest.mark.skipif(why_no_preloading() is not None, reason=str(why_no_preloading()))
async def test_nothing_is_lost_or_repeated_while_the_disk_fails_and_the_server_is_killed(tmp_path: Path) -> None:
    # given
    longest = sized(0.3, 4.0)
    run = DiskFaultRun(tmp_path / "outbox.db", drawn_seed(), max_fault=longest, max_pause=longest, max_life=3 * longest)

    # when
    verdict = await run.run(FAULTS)

    # then
    assert verdict.faults == {}
    assert run.faults.total() == FAULTS
    assert run.kills > 0
    assert len(verdict.ledger.accepted) > FAULTS


class TestTheVerdict:
    """It sees a repeat that no kill explains, and memory beyond the bound."""

    def repeats(self, *lives: tuple[list[int], set[int]]) -> Repeats:
        """Of the deliveries of each life, and the events that were in the outbox at its end."""
        repeats = Repeats()
        for delivered, pending in lives:
            repeats.end_life(delivered, pending)
        return repeats

    def verdict(self, repeats: Repeats, growth: int = 0) -> DiskFaultVerdict:
        """Of a run in which nothing was sent."""
        events = Events("self")
        return DiskFaultVerdict(Ledger(events, Random(0)), Evidence(events), repeats, growth, Counter())

    def test_an_event_that_was_pending_at_a_kill_may_be_delivered_again(self) -> None:
        repeats = self.repeats(([1, 2], {2}), ([2, 3], {2}), ([2], set()))

        assert self.verdict(repeats).faults == {}

    def test_an_event_that_was_delivered_twice_in_one_life_is_found(self) -> None:
        repeats = self.repeats(([1, 2, 1], {1}))

        assert self.verdict(repeats).faults == {"delivered twice without a crash": [1]}

    def test_an_event_that_comes_again_after_it_was_settled_is_found(self) -> None:
        repeats = self.repeats(([1, 2], {2}), ([2], {1}), ([1], set()))

        assert self.verdict(repeats).faults == {"delivered again after they had left the outbox": [1]}

    def test_memory_above_the_bound_is_found(self) -> None:
        faults = self.verdict(Repeats(), MAX_GROWTH + 1).faults

        assert list(faults.values()) == [[MAX_GROWTH + 1]]
