"""Free memory is given back to the system when the process has grown, and not again and again."""

from service.intake.free_memory import GROWTH, STATM, FreeMemory, given_back, resident


class Process:
    """A process of some size."""

    def __init__(self) -> None:
        self.size = 10 * GROWTH
        self.free = 0
        self.given_back = 0
        self.memory = FreeMemory(lambda: self.size, self.give_back)

    def give_back(self) -> None:
        self.size -= self.free
        self.free = 0
        self.given_back += 1


def test_memory_is_given_back_when_the_process_has_grown_and_again_when_it_has_grown_more() -> None:
    # given
    process = Process()
    process.memory.look()
    assert process.given_back == 0

    # when it grows, and half of that is free
    process.size += 2 * GROWTH
    process.free = GROWTH
    process.memory.look()

    # then
    assert process.given_back == 1
    process.size += GROWTH
    process.memory.look()
    assert process.given_back == 1
    process.size += 1
    process.memory.look()
    assert process.given_back == 2


def test_growth_counts_from_the_smallest_size_since() -> None:
    # given a process that has shrunk by itself
    process = Process()
    process.size -= 5 * GROWTH
    process.memory.look()

    # when, then
    process.size += GROWTH + 1
    process.memory.look()
    assert process.given_back == 1


def test_a_running_process_gives_memory_back_without_disturbing_what_runs() -> None:
    with given_back():
        blocks = [bytearray(b"x" * 1_000) for _ in range(80_000)]
        with STATM.open("rb") as statm:
            assert resident(statm.fileno()) > len(blocks) * 1_000
        del blocks[::2]
    assert all(block == b"x" * 1_000 for block in blocks)
