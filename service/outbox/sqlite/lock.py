"""The lock of an outbox file: one server at a time, by whatever name each knows the file.

SQLite itself would let two servers in. The lock is on the file's own inode, so that symbolic links and bind mounts lead
to the same one, and on NAME.lock, which earlier versions lock.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from service.errors import OutboxUnusableError


class OutboxLock:
    """The locks on an outbox file, held until `release`.

    Release it after the last connection to the file is closed: closing any descriptor of a file drops the locks that
    SQLite has on it in this process.
    """

    def __init__(self, path: Path) -> None:
        """Lock a file, creating it, readable by its owner only, if it does not exist.

        Args:
            path: the file, with symbolic links resolved: SQLite puts its -wal file beside it.

        Raises:
            OutboxUnusableError: another server holds a lock, the file has a second name, or cannot be created.
        """
        with contextlib.ExitStack() as stack:
            self.descriptor = _open(path.with_name(path.name + ".lock"), path, stack)
            """Of NAME.lock, on the same disk."""
            holder = os.pread(self.descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            _lock(self.descriptor, path, f"process {holder}")
            file = _open(path, path, stack)
            if (names := os.fstat(file).st_nlink) > 1:
                message = (
                    f"outbox {path}: the file has {names} names (hard links), each with a -wal file of its own, so that"
                    " events would be lost. Backups by hard links make them: delete the other names, or copy the file"
                    " and its -wal file to a new folder, and exclude the outbox from that backup (docs/runbook.md)"
                )
                raise OutboxUnusableError(message)
            _lock(file, path, "by another name of the file")
            with contextlib.suppress(OSError):  # informative only; if the disk fails, opening the file reports it
                os.truncate(self.descriptor, 0)
                os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)
            self._held = stack.pop_all()

    def release(self) -> None:
        """Release the locks."""
        self._held.close()


def _open(name: Path, path: Path, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = f"outbox {path}: {name} is a symbolic link, through which another file would be locked; delete it"
            raise OutboxUnusableError(message) from error
        message = (
            f"outbox {path}: cannot open {name}: {error.strerror}; it must be a file that this user can read and write,"
            " and the folder must exist and be writable"
        )
        raise OutboxUnusableError(message) from error
    stack.callback(os.close, descriptor)
    return descriptor


def _lock(descriptor: int, path: Path, holder: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = (
            f"outbox {path}: in use by another server ({holder}); stop it, or give this one another"
            " POINTILLIST_OUTBOX_URL"
        )
        raise OutboxUnusableError(message) from error
