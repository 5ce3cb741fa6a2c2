"""Pointillist's API token: a setting, or a file that a secret manager may rewrite."""

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.config.watched_file import WatchedFile
from service.errors import SettingsError

LONGEST_TOKEN: Final = 8192  # characters; HTTP servers refuse longer header lines

_PRINTABLE = re.compile(r"[ -~]+")


@dataclass(frozen=True, slots=True)
class FixedToken:
    """A token that stays the same, as `POINTILLIST_API_TOKEN` does."""

    token: str = field(repr=False)

    def current(self) -> str:
        """Return the token."""
        return self.token


def watch_token(path: Path) -> WatchedFile[str]:
    """Read a token from a file, and again whenever the file changes.

    Args:
        path: a regular file with the token and nothing else; whitespace around the token is not part of it.

    Raises:
        SettingsError: the file holds no usable token.
    """

    def read() -> str:
        try:
            return read_token(path)
        except ValueError as error:
            raise SettingsError(f"POINTILLIST_API_TOKEN_FILE: {error}") from None

    return WatchedFile([path], read)


def legal_token(text: str) -> str:
    """Check a token, without the whitespace around it; messages never repeat it."""
    token = text.strip()
    if not token:
        raise ValueError("holds no token: it is empty")
    if not _PRINTABLE.fullmatch(token) or len(token) > LONGEST_TOKEN:
        raise ValueError(
            f"holds something that no HTTP header can carry: expected at most {LONGEST_TOKEN} characters, "
            "all printable ASCII, on one line"
        )
    return token


def regular_file(path: Path) -> Path:
    """Check that a path names a regular file that can be opened; messages quote it, so that they stay one line."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        if regular:  # opening a pipe would wait for its writer
            path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL, which TOML can hold
        regular = False
    if not regular:
        raise ValueError(f"{str(path)!r} is not a regular file")
    return path


def read_token(path: Path) -> str:
    """Read the token that is all a file holds, without the whitespace around it.

    Raises:
        ValueError: the file is not there, or holds no token; the message never repeats it.
    """
    try:
        text = regular_file(path).read_bytes().decode("latin-1")  # any byte decodes; the check comes after
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    try:
        return legal_token(text)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} {error}") from None
