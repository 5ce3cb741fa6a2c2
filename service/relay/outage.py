"""The evidence of an outage: failures since the last 2xx.

An outage, and a wrong set-up alike, is a statement about Pointillist, not about one event or one class of events. So
only a failure of an event that was sent after the last 2xx counts, and each event once.

Pure: times are passed in, in seconds of one steady clock.
"""

ENOUGH = 200  # failed first tries in a row that prove an outage
FEW = 20  # as many are enough once nothing passed for QUIET_TIME, or where nothing ever passed
QUIET_TIME = 30.0  # seconds without a 2xx
ALL_POSTS = 5  # POSTs after which the failure of every event that may be sent is evidence ...
ALL_TIME_FIRST = 10.0  # ... after these seconds, where nothing ever passed or the answers speak of the set-up
ALL_TIME = 300.0  # ... and after these elsewhere
TELLING = 5  # events that failed since the last 2xx after which the relay is not getting through ...
TELLING_TIME = 10.0  # ... if that was so many seconds ago


class Outage:
    """Failures since the last 2xx.

    Args:
        has_passed: a 2xx was seen with this address, token and mapping, in this process or an earlier one.
    """

    def __init__(self, *, has_passed: bool) -> None:
        self.has_passed = has_passed
        self.last_pass_at: float | None = None
        """The time of the last 2xx, or of the first POST before there is one."""
        self.first_tries = 0
        self._failed: set[int] = set()
        self._posts = 0
        self._began_at = 0.0
        self._is_setup = True

    def sent(self, now: float) -> None:
        """Note that a POST leaves."""
        if self.last_pass_at is None:
            self.last_pass_at = now

    def passed(self, now: float) -> None:
        """Note a 2xx."""
        self.has_passed = True
        self.last_pass_at = now
        if self._posts:
            self.forget()

    def forget(self) -> None:
        """Begin again to count."""
        self.first_tries = self._posts = 0
        self._failed.clear()
        self._is_setup = True

    def failed(self, event: int, *, sent_at: float, now: float, is_repeat: bool, is_setup: bool, waiting: int) -> bool:
        """Count a failure; returns True where it proves an outage.

        Args:
            event: identifies the event.
            sent_at: the time of the POST.
            now: the time of the answer.
            is_repeat: the event was tried before.
            is_setup: the answer speaks of the set-up.
            waiting: events that may be sent, those in flight included.
        """
        since = self.last_pass_at
        if since is None or sent_at < since:
            return False
        if not self._posts:
            self._began_at = now
        self._posts += 1
        self.first_tries += not is_repeat
        self._is_setup = self._is_setup and is_setup
        if len(self._failed) < ENOUGH:
            self._failed.add(event)
        is_quiet = not self.has_passed or now - since >= QUIET_TIME
        if (self.first_tries or len(self._failed)) >= (FEW if is_quiet else ENOUGH):
            return True
        if self._posts < ALL_POSTS or len(self._failed) < waiting:
            return False
        patience = ALL_TIME_FIRST if self._is_setup or not self.has_passed else ALL_TIME
        return now - self._began_at >= patience

    def is_telling(self, now: float) -> bool:
        """True once several events failed, and nothing passed for some seconds."""
        return (
            len(self._failed) >= TELLING and self.last_pass_at is not None and now - self.last_pass_at >= TELLING_TIME
        )
