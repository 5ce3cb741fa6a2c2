"""The turns of large batches: one at a time, one caller after the other, and no turn lost."""

import asyncio

import pytest

from service.intake.judging import MAX_TURNS, Judging, Slice
from tests.support.waiting import turns


async def test_turns_go_from_caller_to_caller_and_from_stream_to_stream() -> None:
    # given
    judging = Judging()
    order: list[str] = []

    async def judge(caller: str, stream: int) -> None:
        async with judging.turn(caller, stream):
            order.append(f"{caller}{stream}")
            await turns(3)

    # when
    arrivals = [("a", 1), ("a", 1), ("a", 2), ("a", 2), ("b", 1), ("b", 1), ("c", 1)]
    await asyncio.gather(*(judge(caller, stream) for caller, stream in arrivals))

    # then the first to come has the first turn, and the others take theirs
    assert order == ["a1", "a1", "b1", "c1", "a2", "b1", "a2"]


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    # given
    judging = Judging()
    go_on = asyncio.Event()
    done: list[int] = []

    async def judge(number: int) -> None:
        async with judging.turn("", number):
            await go_on.wait()
            done.append(number)

    tasks = [asyncio.create_task(judge(number)) for number in range(3)]
    await turns()

    # when
    tasks[1].cancel()
    await turns()
    go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)

    # then
    assert done == [0, 2]
    async with judging.turn("", 4):
        pass


async def test_a_turn_that_comes_to_one_who_is_cancelled_is_handed_on() -> None:
    # given
    judging = Judging()
    first = judging.turn("", 0)
    await first.__aenter__()
    waiting = [asyncio.create_task(judging.turn("", number).__aenter__()) for number in (1, 2)]
    await turns()

    # when the turn is given and its taker is cancelled before it runs
    await first.__aexit__(None, None, None)
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]

    # then
    async with asyncio.timeout(1):
        await waiting[1]


async def test_between_two_slices_the_loop_turns_as_long_as_it_has_work() -> None:
    # given
    count = 0

    async def work() -> None:
        nonlocal count
        for _ in range(MAX_TURNS * 2):
            count += 1
            end = asyncio.get_running_loop().time() + 0.0005
            while asyncio.get_running_loop().time() < end:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    part = Slice()

    # when
    await part.next()

    # then
    assert count == MAX_TURNS
    assert not part.is_over()
    task.cancel()
