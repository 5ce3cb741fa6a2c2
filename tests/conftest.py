"""What all tests share: how hypothesis runs, and an outbox in a folder of its own."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# Machines differ in speed and tests share them, so no example fails for its duration; in CI the examples are the same
# every time, so that a red build is about the change in it.
settings.register_profile(
    "project",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")

# A shell that starts tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["0", pytest.param("2", marks=pytest.mark.long)], ids=["lanes", "workers"])
def relay_workers(request: pytest.FixtureRequest) -> str:
    """POINTILLIST_RELAY_WORKERS, for what has to be the same with every courier; in full only where all tests run."""
    workers: str = request.param
    return workers
