"""What all rows share: how much they do, where, and the service under test."""

import contextlib
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.child import Child
from benchmarks.figures import Sample
from service.config.role import Role

SETTLE_TIME = 30.0  # seconds for the last deliveries to be settled on disk
LOOK_INTERVAL = 0.01  # seconds between two looks at whether they are


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    rounds: int = 5
    """Each runs ours, then its rival."""
    is_short: bool = False
    """Whether counts are tiny: to see that everything works, not to learn anything."""
    folder: Path | None = None
    """Where outboxes are made; None for the system's temporary folder."""

    def count(self, full: int, short: int) -> int:
        """A count for this plan."""
        return short if self.is_short else full

    @contextlib.contextmanager
    def new_folder(self) -> Iterator[Path]:
        """A folder for one outbox, deleted in the end."""
        with TemporaryDirectory(prefix="benchmark-", dir=self.folder) as folder:
            yield Path(folder)


def ours(outbox: Path | str, url: str, role: Role = Role.ALL, **settings: str) -> Child:
    """The service under test, in its default set-up but for its addresses.

    Args:
        outbox: its file, or where NATS is.
        url: where it POSTs.
        role: what it does.
        settings: more settings, by their names without the prefix.
    """
    given = {
        "api_token": "token",
        "api_url": url,
        "grpc_listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "outbox_url": f"sqlite:///{outbox.absolute()}" if isinstance(outbox, Path) else outbox,
        "log_level": "error",
        **settings,
    }
    environment = {f"POINTILLIST_{name.upper()}": value for name, value in given.items()}
    return Child("service_child", role, settings=environment)


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses every connection: with it the relay rests, and the way in is measured alone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/event"


def url_of(sink: Child) -> str:
    """Where the sink takes POSTs."""
    return f"http://127.0.0.1:{sink.ready['port']}/event"


def measured(server: Child, events: int, run: Callable[[], float]) -> Sample:
    """Events a second, and what the server spent on them.

    Args:
        server: the process under test.
        events: how many events a run handles.
        run: handles them and returns the seconds it took.
    """
    cpu = server.cpu()
    seconds = run()
    return Sample(events / seconds, (server.cpu() - cpu) / events * 1e6, server.peak_memory())


def ever_accepted(outbox: Path) -> int:
    """How many events the outbox has taken in all, by its duplicate window."""
    return _counter(outbox, "seen")


def wait_until_settled(outbox: Path) -> None:
    """Return once nothing waits in the outbox any more."""
    deadline = time.monotonic() + SETTLE_TIME
    while waiting := _counter(outbox, "events"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{waiting} events still wait in {outbox} after {SETTLE_TIME:g} s")
        time.sleep(LOOK_INTERVAL)


def check_accepted(outbox: Path, events: int) -> None:
    """Make sure that every event that was sent is in the outbox, whatever the load generator saw."""
    if (accepted := ever_accepted(outbox)) != events:
        raise RuntimeError(f"{events} events were sent and {accepted} accepted; the figures mean nothing")


def _counter(outbox: Path, column: str) -> int:
    with contextlib.closing(sqlite3.connect(f"{outbox.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute(f"SELECT {column} FROM counter").fetchone()[0])
