"""The dashboard and the alerts, asked of a real Prometheus that scrapes a real server."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from pointillist_destination.v1.event_service_pb2 import IdentifyRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.sandbox.server import Sandbox
from tests.support.events import identify, track
from tests.support.monitoring import (
    LOOK_INTERVAL,
    PROMETHEUS,
    Prometheus,
    filled,
    panels,
    scraping,
    selectors,
    silent,
)
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import DEADLINE

pytestmark = [
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is missing; Debian's prometheus has it"),
    pytest.mark.asyncio(loop_scope="module"),
]

INTERVAL = "250ms"  # between two scrapes
RATES_OVER = "1m"  # longer than the tests last


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prometheus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prometheus]:
    """One that saw a server before and after some events; shared, as it takes five seconds to its first scrape."""
    folder = tmp_path_factory.mktemp("dashboard")
    sandbox = Sandbox(api_token=TOKEN)
    await sandbox.start("127.0.0.1", 0)
    callers = folder / "callers.toml"
    callers.write_text(f'[callers.checkout]\nsha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n')
    server = await ServerProcess.start(settings_for(folder / "outbox.db", sandbox, callers_file=str(callers)))
    async with scraping(folder, server.metrics_url, INTERVAL) as prometheus:
        assert await silent(prometheus, {"up == 1"}) == set()
        await send_some(server)
        yield prometheus
    await server.stop()
    await sandbox.stop()


async def send_some(server: ServerProcess) -> None:
    """A few events."""
    as_checkout = (("authorization", f"Bearer {TOKEN}"),)
    async with grpc.aio.insecure_channel(server.address) as channel:
        events = EventServiceStub(channel)
        for number in range(5):
            await events.Track(TrackRequest(track=track(number)), metadata=as_checkout)
            await events.Identify(IdentifyRequest(identify=identify(number)), metadata=as_checkout)


async def test_every_query_of_the_dashboard_comes_to_a_number(prometheus: Prometheus) -> None:
    asked = {filled(target["expr"], RATES_OVER) for panel in panels() for target in panel["targets"]}
    assert await silent(prometheus, asked) == set()


async def test_every_alert_finds_the_series_that_it_is_about(prometheus: Prometheus) -> None:
    rules = await prometheus.rules()
    asked = {selector for rule in rules for selector in selectors(rule["query"])}
    assert len(asked) > len(rules) / 2
    assert await silent(prometheus, {f"count({selector})" for selector in asked}) == set()


async def test_every_alert_is_evaluated_without_a_fault_and_a_server_in_good_order_raises_none(
    prometheus: Prometheus,
) -> None:
    found: set[tuple[str, str]] = set()
    async with asyncio.timeout(DEADLINE):
        while found != {("ok", "inactive")}:  # before their first evaluation they are unknown
            found = {(rule["health"], rule["state"]) for rule in await prometheus.rules()}
            await asyncio.sleep(LOOK_INTERVAL)
