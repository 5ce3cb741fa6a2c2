"""A file that is read at the start and again whenever it changes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from service.errors import PointillistDestinationError

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """The value read from one or more files; an unusable new version leaves the old value in force.

    Args:
        paths: the files.
        read: reads them.

    Raises:
        PointillistDestinationError: as `read` does, where the first version is unusable.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._seen = self._signature()
        self._value = read()
        self.problem: str | None = None
        """The reason that the latest version is not in force; None where it is."""

    def current(self) -> T:
        """Return the value in force."""
        return self._value

    def has_changed(self) -> bool:
        """Return True if one of the files differs from the version that was last read."""
        return self._signature() != self._seen

    def reload(self) -> bool:
        """Read the files again; returns True if the new version is in force, False with `problem` set otherwise."""
        self._seen = self._signature()
        try:
            self._value = self._read()
        except PointillistDestinationError as error:
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def _signature(self) -> tuple[tuple[int, ...], ...]:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, ...]:
    """Identify a version of a file without reading it; empty where there is none.

    A link is followed, because the swap of a mounted ConfigMap or Secret is one. The time of the last change of its
    status is included, so that a file that could not be read is read again once its permissions allow it.
    """
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
