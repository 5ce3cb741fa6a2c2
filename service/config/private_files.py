"""Files that only the service's own user, and a group that it shares, should be able to read."""

import stat
from collections.abc import Iterator
from pathlib import Path

from service.config.settings import Settings

PRIVATE = "chmod o-rw, or mount it with a mode such as 0440"
OTHERS = stat.S_IROTH | stat.S_IWOTH


def open_to_others(settings: Settings) -> Iterator[tuple[str, Path, str]]:
    """Give those that any user of the machine can read or write: the setting that names each, its path, its mode.

    A file that is not there, or that cannot be looked at, is reported elsewhere.
    """
    files = [
        ("POINTILLIST_API_TOKEN_FILE", settings.api_token_file),
        ("POINTILLIST_TLS_KEY_FILE", settings.tls_key_file),
        ("POINTILLIST_CALLERS_FILE", settings.callers_file),
        ("POINTILLIST_NATS_KEY_FILE", settings.nats_key_file),
    ]
    if settings.nats_servers is None:
        outbox = settings.outbox_path
        log = outbox.with_name(f"{outbox.name}-wal")
        files += [("POINTILLIST_OUTBOX_URL", path) for path in (outbox, log)]
    for setting, path in files:
        try:
            mode = None if path is None else path.stat().st_mode
        except OSError:
            continue
        if path is not None and mode is not None and mode & OTHERS:
            yield setting, path, f"{stat.S_IMODE(mode):04o}"
