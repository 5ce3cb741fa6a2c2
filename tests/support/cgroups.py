"""A memory cgroup of its own for a process, where the machine lets a test make one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
V1 = ROOT / "memory"


@contextmanager
def memory_cgroup(name: str, most: int) -> Iterator[Path]:
    """Make a cgroup that may have `most` bytes, for one process whose id is written into `cgroup.procs`.

    Skips the test where that is not allowed, as in most containers.
    """
    folder, limit = (V1, "memory.limit_in_bytes") if V1.is_dir() else (ROOT, "memory.max")
    group = folder / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        try:
            (group / limit).write_text(str(most), encoding="ascii")
            swap = group / ("memory.memsw.limit_in_bytes" if V1.is_dir() else "memory.swap.max")
            if swap.exists():
                swap.write_text(str(most if V1.is_dir() else 0), encoding="ascii")
        except OSError as error:
            pytest.skip(f"a cgroup's memory cannot be limited here: {error}")
        yield group
    finally:
        group.rmdir()  # its process has ended
