"""The mapping in force, and how it follows its file."""

from pathlib import Path

from service.config.watched_file import signature
from service.errors import MappingFileError
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import load_mapping


class MappingSource:
    """Holds the mapping in force; a bad new file leaves the old mapping in force."""

    def __init__(self, path: Path | None) -> None:
        """Load the mapping for the first time.

        Args:
            path: the operator's file; None for the built-in mapping, which never changes.

        Raises:
            MappingFileError: the file cannot be used.
        """
        self._path = path
        self._seen = self._signature()
        self._mapping = load_mapping(path)
        self.problem: str | None = None
        """Why the file was not taken up at the last reload; None where it was."""

    def current(self) -> Mapping:
        """The mapping in force."""
        return self._mapping

    def has_changed(self) -> bool:
        """Whether the file is another one than the last that was read, by its time, size and inode."""
        return self._signature() != self._seen

    def reload(self) -> bool:
        """Read the file again; returns whether it was taken up, else `problem` says why not."""
        self._seen = self._signature()
        try:
            self._mapping = load_mapping(self._path)
        except MappingFileError as error:
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def _signature(self) -> tuple[int, ...] | None:
        return None if self._path is None else signature(self._path)
