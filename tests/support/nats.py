"""A real nats-server with JetStream, on a port that it chooses itself."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import until_blocking

BINARY = Path(sys.executable).parent / "nats-server"


@dataclass
class NatsServer:
    """A server, running or stopped by a test."""

    folder: Path
    more: str = ""
    """Further lines of its configuration."""
    jetstream: str = ""
    """Further lines of its JetStream configuration."""
    port: int = -1
    monitoring_port: int = -1
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitoring_url(self) -> str:
        """The URL of its monitoring."""
        return f"http://127.0.0.1:{self.monitoring_port}"

    def start(self) -> None:
        """Start it, and wait until it serves; a second start uses the port of the first."""
        self.folder.mkdir(exist_ok=True)
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            f'host: 127.0.0.1\nport: {self.port}\nhttp: "127.0.0.1:{self.monitoring_port}"\n'
            f'ports_file_dir: "{self.folder}"\n{self.more}\n'
            f'jetstream {{ store_dir: "{self.folder}/store", {self.jetstream} }}\n'
        )
        for old in self.folder.glob("*.ports"):
            old.unlink()
        self._launch()
        until_blocking(self._is_up)
        self.port = int(self._reported_ports()["nats"][0].rpartition(":")[2])
        self.monitoring_port = int(self._reported_ports()["monitoring"][0].rpartition(":")[2])

    def _launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([BINARY, "-c", self.folder / "nats.conf"], stdout=log, stderr=log)

    def _is_up(self) -> bool:
        """Return True once it serves; restart it if it ended, as another process may hold its port for a moment."""
        assert self.process is not None
        if self.process.poll() is not None:
            self._launch()
        return bool(self._reported_ports())

    def _reported_ports(self) -> dict[str, list[str]]:
        """Return the addresses that it reports; empty until the report is complete."""
        for ports in self.folder.glob("*.ports"):
            with contextlib.suppress(json.JSONDecodeError):
                reported: dict[str, list[str]] = json.loads(ports.read_text())
                return reported
        return {}

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it with a signal, and wait until it has ended."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None


@contextmanager
def nats_running(folder: Path, more: str = "", jetstream: str = "") -> Iterator[NatsServer]:
    """Run a server."""
    server = NatsServer(folder, more, jetstream)
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
