"""The write-ahead log of the outbox file: its checkpoints, its size, and commits in it that SQLite did not read.

SQLite's own checkpoints run within a COMMIT and report nothing. The formats of the two files beside the database are
documented at https://www.sqlite.org/walformat.html.
"""

import os
import sqlite3
import sys
from array import array
from pathlib import Path
from typing import Literal

import structlog

CHECKPOINT_FRAMES = 4000  # 16 MiB; fewer checkpoints write a hot page fewer times
RETRY_FRAMES = 1000  # by which the log grows before a checkpoint that left some of it is tried again
RESTING_SIZE = 64 * 1024 * 1024  # bytes, to which SQLite cuts a log that grew beyond; it overwrites the rest

HEADER_SIZE, FRAME_HEADER_SIZE = 32, 24  # bytes, of the log
BIG_ENDIAN_AT, PAGE_SIZE, SALT = 3, slice(8, 12), slice(16, 24)  # in the log's header
CHECKED, COMMIT, FRAME_SALT, FRAME_CHECKSUM = slice(0, 8), slice(4, 8), slice(8, 16), slice(16, 24)  # in a frame's
# COMMIT is 0 but in the last frame of a transaction.
LAST_FRAME_AT = 16  # in the index (-shm), in the machine's byte order

log = structlog.get_logger()


class WriteAheadLog:
    """The log of an open outbox file. Used on the writer's thread, but for its counts."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Follow the log of a file that was read already, and not written yet.

        Logs an error if SQLite read less than the log holds, as it does if the disk changed a part of it.

        Args:
            connection: to the file.
            path: of the database.
        """
        self._connection = connection
        self._path = path.with_name(path.name + "-wal")
        # Closing any descriptor of the index ends SQLite's locks on it, so this one is closed last.
        self._index = os.open(path.with_name(path.name + "-shm"), os.O_RDONLY | os.O_CLOEXEC)
        self.checkpoints = 0
        """Checkpoints, since start."""
        self.incomplete_checkpoints = 0
        """Those that failed, or had to leave a part of the log."""
        self._is_complete = True  # the last one was
        self._frames = self.frames()  # when last asked
        self._due_at = CHECKPOINT_FRAMES
        commits = unread_commits(self._path, self._frames)
        if commits:
            log.error(
                "write-ahead log of the outbox is damaged; changes behind the damage are lost",
                commits=commits,
                advice="check the disk; callers were told that events of these commits were accepted",
            )

    def close(self) -> None:
        """Close the index, after the connection."""
        os.close(self._index)

    def frames(self) -> int:
        """Return the number of pages in the log that are in use."""
        return int.from_bytes(os.pread(self._index, 4, LAST_FRAME_AT), sys.byteorder)

    def size(self) -> int:
        """Return the size of the log's file, in bytes."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def checkpoint_if_due(self, *, at_once: bool = False) -> None:
        """Copy the log into the database if it has grown, or `at_once`; nothing waits for a reader of the file."""
        frames = self.frames()
        if frames < self._frames:  # SQLite began it from the front
            self._due_at = CHECKPOINT_FRAMES
        self._frames = frames
        if frames < self._due_at and not at_once:
            return
        self.checkpoints += 1
        try:
            _, in_log, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            self._note(frames, complete=False, why=str(error))
        else:
            self._note(frames, complete=in_log == copied, why=f"{in_log - copied} pages are in use by a reader")

    def _note(self, frames: int, *, complete: bool, why: str) -> None:
        self._due_at = frames + (CHECKPOINT_FRAMES if complete else RETRY_FRAMES)
        self.incomplete_checkpoints += not complete
        if complete and not self._is_complete:
            log.info("checkpoint of the outbox is complete again")
        elif self._is_complete and not complete:
            log.warning(
                "checkpoint of the outbox is incomplete; its write-ahead log grows",
                why=why,
                size=self.size(),
                advice="end programs that read the outbox file for long; check the disk",
            )
        self._is_complete = complete


def unread_commits(path: Path, frames: int) -> int:
    """Return the number of commits in a log that others followed, behind the frames that SQLite read.

    A last commit does not count. After a crash the log ends in frames without a commit, or in one that was written in
    part; and a commit that the disk refused stays in the log behind a shorter one that was put in its place. Neither is
    damage, and nothing ever follows them. Frames of an earlier round of the log have another salt.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        header = file.read(HEADER_SIZE)
        if len(header) < HEADER_SIZE:
            return 0
        order: Literal["big", "little"] = "big" if header[BIG_ENDIAN_AT] & 1 else "little"
        size = FRAME_HEADER_SIZE + int.from_bytes(header[PAGE_SIZE], "big")
        file.seek(HEADER_SIZE + frames * size)
        commits = 0
        before: bytes | None = None  # the checksum of the frame before, if that is a commit
        while len(frame := file.read(size)) == size and frame[FRAME_SALT] == header[SALT]:
            commits += before is not None and frame[FRAME_CHECKSUM] == _checksum(before, frame, order)
            before = frame[FRAME_CHECKSUM] if any(frame[COMMIT]) else None
        return commits


def _checksum(before: bytes, frame: bytes, order: Literal["big", "little"]) -> bytes:
    """Return the checksum of a frame, which continues that of the frame before it."""
    first, second = (int.from_bytes(before[at : at + 4], "big") for at in (0, 4))
    words = array("I", frame[CHECKED] + frame[FRAME_HEADER_SIZE:])
    if order != sys.byteorder:
        words.byteswap()
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first.to_bytes(4, "big") + second.to_bytes(4, "big")
