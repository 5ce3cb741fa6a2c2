"""What all tests share: how hypothesis runs, and an outbox in a folder of its own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from tests.support.nats import NatsServer, nats_running
from tests.support.outboxes import Backend, on_jetstream, on_sqlite
from tests.support.sizes import sized

# Machines differ in speed and tests share them, so no example fails for its duration; in CI the examples are the same
# every time, so that a red build is about the change in it.
settings.register_profile(
    "project",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    max_examples=sized(25, 100),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")

# A shell that starts tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Twice as many test processes as cores, 16 at most: half of the tests' time is waiting."""
    return min(2 * (os.cpu_count() or 1), 16)


@pytest.fixture(params=["0", pytest.param("2", marks=pytest.mark.long)], ids=["lanes", "workers"])
def relay_workers(request: pytest.FixtureRequest) -> str:
    """POINTILLIST_RELAY_WORKERS, for what has to be the same with every courier; in full only where all tests run."""
    workers: str = request.param
    return workers


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A NATS server that tests share; each has streams of its own."""
    with nats_running(tmp_path_factory.mktemp("nats") / "server") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """How the names of a test's streams begin."""
    return f"T-{uuid4().hex}"


@pytest.fixture(params=["sqlite", "jetstream"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Backend:
    """Each kind of outbox in turn."""
    if request.param == "sqlite":
        return on_sqlite(tmp_path / "outbox.db")
    server: NatsServer = request.getfixturevalue("nats_server")
    return on_jetstream(server.url, prefix)
