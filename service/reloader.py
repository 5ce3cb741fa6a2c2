"""Takes up the files that change while the server runs: the API token, the mapping, certificates and callers."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from service.config.token import FixedToken
from service.config.watched_file import WatchedFile
from service.intake.callers import Callers
from service.intake.certificates import Certificates
from service.mapping.mapping import Mapping
from service.mapping.mapping_file import load_mapping
from service.telemetry.metrics import Metrics

RELOAD_INTERVAL = 1.0  # seconds between checks for changed files

log = structlog.get_logger()


def watch_mapping(path: Path | None) -> WatchedFile[Mapping]:
    """Read the mapping from a file, and again whenever the file changes.

    Args:
        path: the operator's file; None for the built-in mapping, which never changes.

    Raises:
        MappingFileError: the file cannot be used.
    """
    return WatchedFile([] if path is None else [path], lambda: load_mapping(path))


class Reloader:
    """Watches the files of one server.

    Args:
        token: the API token.
        mapping: the mapping.
        callers: the callers; None where callers need no token.
        certificates: the certificates of the gRPC port; None without TLS.
        metrics: counts the reloads of the mapping, and names the callers.
        changed: called when the token or the mapping is another one, or an operator asked.
        callers_changed: called when the callers are other ones.
    """

    def __init__(
        self,
        *,
        token: FixedToken | WatchedFile[str],
        mapping: WatchedFile[Mapping],
        callers: WatchedFile[Callers] | None,
        certificates: WatchedFile[Certificates] | None,
        metrics: Metrics,
        changed: Callable[[], None],
        callers_changed: Callable[[], None],
    ) -> None:
        self._token = token
        self._mapping = mapping
        self._callers = callers
        self._certificates = certificates
        self._metrics = metrics
        self._changed = changed
        self._callers_changed = callers_changed
        self._asked = asyncio.Event()

    def reload(self) -> None:
        """Read all files again now, as an operator asks."""
        self._asked.set()

    async def run(self) -> None:
        """Take up changes until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), RELOAD_INTERVAL)
            is_asked = self._asked.is_set()
            self._asked.clear()
            self._reload_token(is_asked=is_asked)
            _reload(self._certificates, "certificates", is_asked=is_asked)
            if _reload(self._callers, "callers", is_asked=is_asked) and self._callers is not None:
                self._metrics.rpc.name_callers(self._callers.current().names)
                self._callers_changed()
            self._reload_mapping(is_asked=is_asked)

    def _reload_token(self, *, is_asked: bool) -> None:
        token = self._token
        before = token.current()
        if isinstance(token, WatchedFile) and (is_asked or token.has_changed()) and not token.reload():
            log.warning(
                "the API token could not be read again; the token read before stays in force", why=token.problem
            )
        if token.current() != before:
            log.info("API token changed")
        if is_asked or token.current() != before:
            self._changed()

    def _reload_mapping(self, *, is_asked: bool) -> None:
        if not (is_asked or self._mapping.has_changed()):
            return
        is_in_force = self._mapping.reload()
        self._metrics.mapping_reloads["taken_up" if is_in_force else "refused"].inc()
        if is_in_force:
            log.info("mapping reloaded")
            self._changed()
        else:
            log.error("mapping file refused; the old mapping stays in force", why=self._mapping.problem)


def _reload(file: WatchedFile[Any] | None, name: str, *, is_asked: bool) -> bool:
    """Read a file again if it changed or an operator asks; returns True if it was, and is in force."""
    if file is None or not (is_asked or file.has_changed()):
        return False
    if file.reload():
        log.info("file reloaded", file=name)
        return True
    log.error("file refused; the version read before stays in force", file=name, why=file.problem)
    return False
