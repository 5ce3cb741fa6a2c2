"""The process' open descriptors: each connection needs one, and without one nothing can call, probe or scrape."""

import asyncio
import errno
import resource
from collections.abc import Callable
from pathlib import Path

import structlog

INTERVAL = 1.0  # seconds between two looks
WARNED_SHARE, REPORTED_SHARE = 0.8, 0.95
REPEATED_AFTER = 60  # looks after which a share that stays high is logged again
ADVICE = "raise the hard limit of open files, or find out who holds connections"
OPEN = Path("/proc/self/fd")

log = structlog.get_logger()


def raise_limit() -> None:
    """Raise the soft limit to the hard one, as any process may; a shell's or a unit's default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # a hard limit above what the kernel allows
            log.warning("cannot raise the limit of open descriptors", limit=soft, why=str(error))
            return
    log.info("limit of open descriptors", limit=hard, raised_from=soft)


def used_share() -> float:
    """Return the share of the limit that is in use; 1 where not even a look at it gets a descriptor.

    Raises:
        OSError: the system does not tell.
    """
    try:
        number = sum(1 for _ in OPEN.iterdir()) - 1  # its own is among them
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return 1.0
        raise
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0.0 if limit == resource.RLIM_INFINITY else number / limit


class Descriptors:
    """Looks at them, and says when they become few.

    Args:
        share: as `used_share`.
    """

    def __init__(self, share: Callable[[], float] = used_share) -> None:
        self._share = share
        self.share = 0.0
        """Of the limit, at the latest look."""
        self._looks_left = 0
        self._level = 0

    async def run(self) -> None:
        """Look once a second, on a thread: where many are open, that takes some milliseconds."""
        while True:
            try:
                share = await asyncio.to_thread(self._share)
            except OSError as error:  # not Linux
                log.debug("cannot count open descriptors", why=str(error))
            else:
                self.note(share)
            await asyncio.sleep(INTERVAL)

    def note(self, share: float) -> None:
        """Take up a look: log a share that is high, when it becomes so and once a minute, and when it is no more."""
        self.share = share
        level = (share >= WARNED_SHARE) + (share >= REPORTED_SHARE)
        self._looks_left -= 1
        if level == self._level and (not level or self._looks_left > 0):
            return
        is_better, self._level, self._looks_left = level < self._level, level, REPEATED_AFTER
        used = f"{share:.0%}"
        if level == 2:
            log.error("open descriptors are almost used up; connections will be refused", used=used, advice=ADVICE)
        elif level == 1:
            log.warning("open descriptors come near their limit", used=used, advice=ADVICE)
        elif is_better:
            log.info("open descriptors are few again", used=used)
