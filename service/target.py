"""The server that a command calls."""

import os
from dataclasses import dataclass
from pathlib import Path

from service.cli_errors import UnreadableFileError
from service.errors import SettingsError
from service.settings import Listen, load_settings


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens, and how to call it."""

    address: str
    """HOST:PORT."""
    certificates: bytes | None = None
    """The authorities to trust, in PEM, for a server with TLS; None for plain text."""
    token: str | None = None
    """The caller's token; None for a server that asks for none. It is no part of a repr."""

    def __repr__(self) -> str:
        return f"Target({self.address!r})"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def find_target(given: str | None, ca_file: Path | None, token_file: Path | None) -> Target:
    """The server that options name; without an address, the one that the settings have listen here.

    Raises:
        SettingsError: the address or a setting cannot be used.
        UnreadableFileError: a file cannot be read.
    """
    certificates = None if ca_file is None else _read(ca_file)
    token = None if token_file is None else _read(token_file).decode(errors="replace").strip()
    if given is not None:
        try:
            return Target(str(Listen.parse(given)), certificates, token)
        except ValueError as error:
            raise SettingsError(f"--target: {error}") from error
    listen = load_settings(os.environ).grpc_listen
    # A server that listens on every address is reached on this machine's own.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104  nothing is bound here
    return Target(str(Listen(host, listen.port)), certificates, token)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"{path}: {error.strerror}") from error
