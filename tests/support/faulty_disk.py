"""A disk of an outbox file that fails on demand: the other side of tests/acceptance/faulty_disk.c."""

import mmap
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tests.support.paths import PROJECT
from tests.support.preloading import compiled

SOURCE = PROJECT / "tests" / "acceptance" / "faulty_disk.c"
WORD = 8  # bytes
SETTINGS = ("mode", "room", "wait")
COUNTS = (
    "refused writes",
    "refused truncations",
    "refused syncs",
    "writes without space",
    "hung syncs",
    "slow syncs",
)


class Mode(IntEnum):
    """How a disk behaves."""

    GOOD = 0
    REFUSE = 1
    """Writes, truncations and syncs fail with EIO."""
    REFUSE_SYNCS = 2
    """Syncs fail with EIO; writes pass."""
    FULL = 3
    """Writes fail with ENOSPC once the room that is left is used up."""
    HANG = 4
    """A sync does not return before the mode changes."""
    SLOW = 5
    """A sync takes long."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a disk."""

    mode: Mode
    room: int = 0
    """Bytes that a full disk still takes."""
    wait: float = 3600.0
    """Seconds that a slow sync takes, or that one hangs at most."""


class FaultyDisk:
    """The disk of one outbox file. It is good until it is told otherwise.

    Args:
        outbox: the file; it need not exist.
        folder: for the library and what controls it.
    """

    def __init__(self, outbox: Path, folder: Path) -> None:
        self._library = compiled(SOURCE, folder)
        self._outbox = outbox.resolve()
        self._path = folder / "faulty_disk.control"
        self._path.write_bytes(bytes(WORD * (len(SETTINGS) + len(COUNTS))))
        with self._path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def environment(self) -> dict[str, str]:
        """The variables with which a process has the outbox on this disk."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAULTY_FILE": str(self._outbox),
            "FAULTY_CONTROL": str(self._path),
        }

    def fail(self, fault: Fault) -> None:
        """Behave so from now on."""
        self._words[1], self._words[2] = fault.room, round(fault.wait * 1000)
        self._words[0] = fault.mode

    def mend(self) -> None:
        """Be good from now on; syncs that hang go on."""
        self._words[0] = Mode.GOOD

    @property
    def is_good(self) -> bool:
        """True while it does not fail."""
        return self._words[0] == Mode.GOOD

    @property
    def met(self) -> dict[str, int]:
        """Faults that processes have met, by their kind."""
        return dict(zip(COUNTS, self._words[len(SETTINGS) :], strict=True))
