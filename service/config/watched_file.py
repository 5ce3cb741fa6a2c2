"""Whether a file is another one than before, without reading it."""

from pathlib import Path


def signature(path: Path) -> tuple[int, ...]:
    """What differs when the file differs: its time, size and inode; empty where there is none.

    A link is followed, because the swap of a mounted ConfigMap or Secret is one.
    """
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
