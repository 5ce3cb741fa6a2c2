"""What `doctor` finds of an outbox on NATS."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from service.cli.doctor.finding import Finding, Grade
from service.cli.doctor.nats import nats_findings
from service.clock import SystemClock
from service.config.settings import load_settings
from service.outbox.jetstream.streams import Plan
from tests.support.events import entries
from tests.support.nats import NatsServer, nats_running
from tests.support.outboxes import bury, opened_on_nats
from tests.support.processes import run


def findings(server: NatsServer, prefix: str, **changed: str) -> dict[str, Finding]:
    """What doctor finds, by check."""
    given = {"POINTILLIST_OUTBOX_URL": server.url, "POINTILLIST_NATS_STREAM": prefix}
    more = {f"POINTILLIST_{name.upper()}": value for name, value in changed.items()}
    found = nats_findings(load_settings(given | more), server.monitoring_port)
    return {finding.check: finding for finding in found}


def fill(server: NatsServer, plan: Plan, waiting: int, dead: int) -> None:
    """Make an outbox with so many events and dead letters."""

    async def fill() -> None:
        async with opened_on_nats(server.url, plan, SystemClock()) as outbox:
            await bury(outbox, entries(dead, 1_000_000))
            await outbox.put(entries(waiting))

    asyncio.run(fill())


def make_stream(server: NatsServer, **config: Any) -> None:
    """Make a stream as an operator does."""

    async def make() -> None:
        client = Client()
        await client.connect(server.url)
        await client.jsm().add_stream(**config)
        await client.close()

    asyncio.run(make())


def test_an_outbox_in_order_is_told_with_what_it_holds(nats_server: NatsServer, prefix: str) -> None:
    fill(nats_server, Plan(prefix), 3, 2)
    found = findings(nats_server, prefix)
    assert found["nats"].grade is found["account"].grade is found["streams"].grade is Grade.OK
    assert found["backlog"].text.startswith("3 events wait")
    assert found["age"].text.startswith("the oldest event waits since")
    assert found["dead letters"].text == "2: 400 (2)"


def test_an_outbox_that_serve_has_still_to_make_is_all_right(nats_server: NatsServer, prefix: str) -> None:
    found = findings(nats_server, prefix)
    assert found["streams"].grade is Grade.OK
    assert found["streams"].text.endswith("serve makes what is missing")
    assert "backlog" not in found


def test_a_nats_that_cannot_be_reached_is_an_error(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats") as server:
        server.stop()
        found = findings(server, prefix)
    assert found["nats"].grade is Grade.ERROR
    assert "cannot be reached" in found["nats"].text


def test_a_server_without_jetstream_is_an_error(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats", jetstream="enabled: false") as server:
        found = findings(server, prefix)
    assert found["nats"].grade is Grade.ERROR
    assert "JetStream" in found["nats"].advice


def test_streams_that_will_not_do_are_an_error_with_what_differs(nats_server: NatsServer, prefix: str) -> None:
    make_stream(nats_server, name=f"{prefix}_EVENTS", subjects=[f"{prefix}.events"])
    found = findings(nats_server, prefix)["streams"]
    assert found.grade is Grade.ERROR
    assert f"{prefix}_EVENTS: retention is limits, and must be workqueue" in found.text


def test_a_full_outbox_is_an_error(nats_server: NatsServer, prefix: str) -> None:
    fill(nats_server, Plan(prefix, events=3), 3, 0)
    assert findings(nats_server, prefix)["backlog"].grade is Grade.ERROR


def test_an_acknowledgement_before_the_disk_has_it_is_warned_of(nats_server: NatsServer, prefix: str) -> None:
    found = findings(nats_server, prefix)["sync_interval"]
    assert (found.grade, found.text) == (Grade.WARNING, "NATS acknowledges before it writes to disk")
    assert "sync_interval: always" in found.advice


def test_a_server_that_syncs_always_is_all_right(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats", jetstream="sync_interval: always") as server:
        assert findings(server, prefix)["sync_interval"].grade is Grade.OK


def test_that_it_cannot_be_seen_is_told_with_what_to_set(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats") as server:
        server.monitoring_port = 1
        found = findings(server, prefix)["sync_interval"]
    assert found.grade is Grade.WARNING
    assert found.text.endswith("cannot be seen from here (no answer at port 1)")


@pytest.mark.parametrize("size", ["10MiB", "100KiB"])
def test_an_account_with_too_little_storage_is_an_error(tmp_path: Path, prefix: str, size: str) -> None:
    accounts = "accounts { A { jetstream { max_file: 1MB }, users: [{ user: a, password: b }] } }\nno_auth_user: a"
    with nats_running(tmp_path / "nats", accounts) as server:
        found = findings(server, prefix, outbox_max_bytes=size)["account"]
    assert found.grade is (Grade.ERROR if size == "10MiB" else Grade.OK)


async def test_the_command_says_it_all_and_logs_nothing(nats_server: NatsServer, prefix: str) -> None:
    ended = await run(
        "doctor",
        environ={
            "POINTILLIST_API_TOKEN": "the-token",
            "POINTILLIST_API_URL": "http://127.0.0.1:1/event",
            "POINTILLIST_GRPC_LISTEN": "127.0.0.1:0",
            "POINTILLIST_METRICS_LISTEN": "",
            "POINTILLIST_OUTBOX_URL": nats_server.url,
            "POINTILLIST_NATS_STREAM": prefix,
        },
    )
    assert f"ok      nats: JetStream answers at 127.0.0.1:{nats_server.port}" in ended.out_lines
    assert "connected to NATS" not in ended.out + ended.err
