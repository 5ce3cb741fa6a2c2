"""A real nats-server with JetStream on files, on ports that it chooses itself, and what it says of its streams."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import process_cpu

BINARY = Path(sys.executable).parent / "nats-server"
START_TIME = 20.0  # seconds until it serves
STOP_TIME = 20.0  # seconds until it has ended
LOOK_INTERVAL = 0.01  # seconds between two looks at what it says
CONFIGURATION = """
host: 127.0.0.1
port: -1
http: "127.0.0.1:-1"
ports_file_dir: {folder}
jetstream {{ store_dir: {folder}, sync_interval: {sync_interval} }}
"""
DEFAULT_SYNC = "2m"  # JetStream's own sync_interval


@dataclass(frozen=True, slots=True)
class Nats:
    """A nats-server that serves."""

    process: "subprocess.Popen[bytes]"
    url: str
    """Where it takes clients."""
    monitoring: str
    """Where it tells of itself, over HTTP."""

    def cpu(self) -> float:
        """Seconds of CPU, user and system, of all its threads so far."""
        return process_cpu(self.process.pid)

    def waiting(self, stream: str) -> int:
        """How many messages a stream holds."""
        return self._state(stream)["messages"]

    def ever_stored(self, stream: str) -> int:
        """How many messages a stream has taken in all."""
        return self._state(stream)["last_seq"]

    def _state(self, stream: str) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.monitoring}/jsz?streams=true", timeout=START_TIME) as answer:
            accounts = json.load(answer)["account_details"]
        [state] = [
            found["state"] for account in accounts for found in account["stream_detail"] if found["name"] == stream
        ]
        return {name: state[name] for name in ("messages", "last_seq")}


@contextlib.contextmanager
def running_nats(folder: Path, sync_interval: str = DEFAULT_SYNC) -> Iterator[Nats]:
    """Have a nats-server run, with its files in a folder that is there.

    Args:
        folder: on the disk whose fsync is to count.
        sync_interval: how often it has the disk write what it acknowledged: a duration, or `always`.
    """
    path = folder / "nats.conf"
    path.write_text(CONFIGURATION.format(folder=json.dumps(str(folder)), sync_interval=sync_interval))
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen([BINARY, "-c", path], stdout=log, stderr=log)
    try:
        ports = _ports(folder, process)
        yield Nats(process, ports["nats"][0], ports["monitoring"][0])
    finally:
        process.terminate()
        process.wait(STOP_TIME)


def _ports(folder: Path, process: "subprocess.Popen[bytes]") -> dict[str, list[str]]:
    """The ports that a server says it has chosen."""
    deadline = time.monotonic() + START_TIME
    while True:
        written = [path.read_text() for path in folder.glob("*.ports")]
        if written and written[0]:
            ports: dict[str, list[str]] = json.loads(written[0])
            return ports
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nats-server does not serve:\n{(folder / 'nats.log').read_text()}")
        time.sleep(LOOK_INTERVAL)
