"""Processes of this machine, as /proc shows them; Linux alone has it."""

from pathlib import Path

PROC = Path("/proc")


def children(pid: int) -> set[int]:
    """The processes that a process has started and that have not ended."""
    processes = {int(folder.name) for folder in PROC.iterdir() if folder.name.isdigit()}
    return {process for process in processes if _parent(process) == pid}


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and is not waited for does not."""
    return _parent(pid) is not None


def _parent(pid: int) -> int | None:
    """Who started a process; None where it has ended."""
    try:
        # The name comes first, in brackets, and may hold anything; the state and the parent follow.
        state, parent = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in ("Z", "X") else int(parent)
