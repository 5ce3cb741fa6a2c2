"""The metrics server beside clients that send half of a request, or ask for something else."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.config.address import Listen
from service.telemetry import metrics_server
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_server import MAX_REQUESTS, start_metrics_server
from tests.support.waiting import DEADLINE

HALF = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def address() -> Iterator[Listen]:
    """Where the metrics are served."""
    server = start_metrics_server(Listen("127.0.0.1", 0), Metrics())
    assert server.listen is not None
    yield server.listen
    server.stop()


def scrape(address: Listen, path: str = "/metrics") -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=DEADLINE) as answer:
        content: bytes = answer.read()
    return content


def half_sent(address: Listen, stack: ExitStack) -> socket.socket:
    connection = stack.enter_context(socket.create_connection((address.host, address.port), timeout=DEADLINE))
    connection.sendall(HALF)
    return connection


def test_requests_that_are_half_sent_hold_few_threads_and_keep_nobody_out(address: Listen) -> None:
    with ExitStack() as stack:
        # given
        before = threading.active_count()
        connections = [half_sent(address, stack) for _ in range(5 * MAX_REQUESTS)]

        # when, then
        assert b"pointillist_destination_ready" in scrape(address)
        assert connections[0].recv(1) == b""  # the oldest was closed
        assert threading.active_count() - before <= MAX_REQUESTS + 1


def test_a_request_that_does_not_end_is_closed(address: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "MAX_SECONDS", 0.05)
    with ExitStack() as stack:
        assert half_sent(address, stack).recv(1) == b""


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/debug"])
def test_other_paths_are_not_found(address: Listen, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        scrape(address, path)
    assert refused.value.code == 404
    assert refused.value.read() == b"metrics are at /metrics\n"
