"""A line of tasks that wait."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from service.intake.waiting_line import WaitingLine


@given(order=st.permutations(range(8)), absent=st.sets(st.integers(0, 7)))
def test_who_waits_goes_on_in_the_order_of_arrival_whenever_it_began_to_wait(
    order: list[int], absent: set[int]
) -> None:
    async def run() -> list[int]:
        # given arrivals, of which some never wait
        line = WaitingLine()
        assert [line.arrive() for _ in order] == list(range(8))
        gone: list[int] = []
        gate = asyncio.Event()

        async def wait(number: int) -> None:
            with line.place(number):
                await gate.wait()
                await line.first(number)
                assert line.is_first(number)
                gone.append(number)

        # when they take their places in any order
        tasks = [asyncio.create_task(wait(number)) for number in order if number not in absent]
        await asyncio.sleep(0)
        assert line.is_empty() == (not tasks)
        gate.set()
        await asyncio.gather(*tasks)
        assert line.is_empty()
        return gone

    # then
    assert asyncio.run(run()) == [number for number in range(8) if number not in absent]


async def test_one_that_gives_up_leaves_its_place_to_the_next() -> None:
    line = WaitingLine()
    first, second = line.arrive(), line.arrive()

    async def wait(number: int) -> None:
        with line.place(number):
            await line.first(number)

    with line.place(first):
        waiting = asyncio.create_task(wait(second))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
