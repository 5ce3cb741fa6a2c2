"""Where Pointillist's token comes from: a setting, or a file that a secret manager may rewrite."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.config.fields import read_token
from service.errors import SettingsError


class TokenSource(Protocol):
    """Where Pointillist's token comes from; it can change while the service runs."""

    @property
    def problem(self) -> str | None:
        """What the last `reload` ran into, in one line for a log that never holds the token; `None` if nothing."""

    def current(self) -> str:
        """Give the token to send now."""

    def reload(self) -> bool:
        """Look again; true when the token is another one than before. Never raises: it sets `problem`."""


@dataclass(frozen=True, slots=True)
class FixedToken:
    """A token that stays the same, as `POINTILLIST_API_TOKEN` is."""

    token: str = field(repr=False)

    @property
    def problem(self) -> None:
        """Nothing can go wrong: there is nowhere to look."""

    def current(self) -> str:
        """Give the token."""
        return self.token

    def reload(self) -> bool:
        """Do nothing: there is nowhere to look."""
        return False


class FileToken:
    """A token in a file that a secret manager may rewrite; whitespace around it is not part of it."""

    def __init__(self, path: Path) -> None:
        """Read the token for the first time.

        Args:
            path: a regular file with the token and nothing else.

        Raises:
            SettingsError: when the file holds no usable token.
        """
        self.problem: str | None = None
        self._path = path
        try:
            self._token = read_token(path)
        except ValueError as error:
            raise SettingsError(f"POINTILLIST_API_TOKEN_FILE: {error}") from None

    def current(self) -> str:
        """Give the token that was last read."""
        return self._token

    def reload(self) -> bool:
        """Read the file again; a file that is gone, empty or unusable for the moment leaves the old token in force."""
        try:
            token = read_token(self._path)
        except ValueError as error:
            self.problem = f"POINTILLIST_API_TOKEN_FILE: {error}; the token read before stays in force"
            return False
        changed = token != self._token
        self.problem, self._token = None, token
        return changed
