"""Log lines and metrics, as an operator's tools read them."""

import io
import json
import logging
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest

from service.config.address import Listen
from service.errors import SettingsError
from service.telemetry.logs import _NoInput, configure_logging
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_server import MetricsServer, start_metrics_server


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    running = start_metrics_server(Listen("127.0.0.1", 0), Metrics())
    yield running
    running.stop()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fetch(listen: Listen | None, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://{listen}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


def fetch_from(metrics: Metrics, accept: str) -> str:
    server = start_metrics_server(Listen("127.0.0.1", 0), metrics)
    try:
        return fetch(server.listen, accept)
    finally:
        server.stop()


# Logging


def test_a_json_line_has_time_level_event_and_fields(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("relay paused", reason="setup", events=3)
    (line,) = lines(stream)
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo == UTC
    assert line == {"event": "relay paused", "level": "info", "reason": "setup", "events": 3}


def test_lines_below_the_level_are_left_out(stream: io.StringIO) -> None:
    configure_logging("warning", "json", stream)
    log = structlog.get_logger()
    log.debug("one")
    log.info("two")
    log.warning("three")
    log.error("four")
    assert [line["event"] for line in lines(stream)] == ["three", "four"]


def test_fields_bound_to_the_context_are_in_the_line(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    with structlog.contextvars.bound_contextvars(message_id="m-1"):
        structlog.get_logger().info("accepted")
    assert lines(stream)[0]["message_id"] == "m-1"


def test_an_exception_is_one_line_without_local_variables(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    try:
        token = "s3cret"
        assert int(token)
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert line["event"] == "failed"
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert "token = 's3cret'" not in line["exception"]


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800", b"\xff", {1: (2,)}, {("a", 1): 2}, float("nan")])
def test_any_value_can_be_logged(stream: io.StringIO, value: object) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger().info("odd", value=value)
    assert lines(stream)[0]["event"] == "odd"


def test_lines_of_libraries_have_the_same_form(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    logging.getLogger("grpc").warning("call %d failed", 7)
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("call 7 failed", "warning", "grpc")
    assert "timestamp" in line


def test_libraries_are_not_heard_below_warning_even_at_debug(stream: io.StringIO) -> None:
    configure_logging("debug", "json", stream)
    logging.getLogger("hpack").debug("apiToken: s3cret")
    logging.getLogger("aiohttp.access").info("GET /")
    assert lines(stream) == []


def test_exceptions_of_libraries_have_the_same_form(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    try:
        Path("/nonexistent").stat()
    except OSError:
        logging.getLogger("some.library").exception("task died")
    (line,) = lines(stream)
    assert "FileNotFoundError: " in line["exception"]


@pytest.mark.parametrize("name", ["grpc._cython.cygrpc", "asyncio"])
def test_records_that_would_repeat_what_a_caller_sent_keep_their_kind_and_nothing_else(
    stream: io.StringIO, name: str
) -> None:
    # given
    configure_logging("info", "json", stream)
    logger = logging.getLogger(name)

    # when
    try:
        b"Bearer a-secret-token\xff".decode()
    except UnicodeDecodeError as error:
        logger.error("Task exception was never retrieved\nfuture: %r", error, exc_info=error)  # noqa: TRY400  as asyncio does
        logger.exception(error)  # noqa: TRY401  as grpc.aio does

    # then
    first, second = lines(stream)
    assert first["event"].startswith("Task exception was never retrieved: UnicodeDecodeError at ")
    assert second["event"].startswith("failed: UnicodeDecodeError at ")
    assert "token" not in stream.getvalue()


def test_a_flood_of_such_records_is_cut_and_counted(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    now = 0.0
    configure_logging("info", "json", stream)
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [_NoInput(lambda: now)])

    # when
    for _ in range(1000):
        logging.getLogger("asyncio").error("a flood")
    now = 1.0
    logging.getLogger("asyncio").error("a flood")

    # then
    written = [line["event"] for line in lines(stream)]
    assert written == ["a flood"] * 5 + ["a flood (995 such lines left out before)"]


def test_python_warnings_have_the_same_form(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("info", "json", stream)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines(stream)
    assert "DeprecationWarning: old" in line["event"]


def test_text_is_for_people_and_has_no_colours_off_a_terminal(stream: io.StringIO) -> None:
    configure_logging("info", "text", stream)
    try:
        Path("/nonexistent").stat()
    except OSError:
        structlog.get_logger().exception("relay paused", reason="setup")
    text = stream.getvalue()
    assert "relay paused" in text
    assert "reason=setup" in text
    assert "FileNotFoundError: " in text
    assert "\x1b" not in text


@pytest.mark.usefixtures("stream")
def test_with_no_format_a_terminal_gets_text() -> None:
    terminal = Terminal()
    configure_logging("info", None, terminal)
    structlog.get_logger().info("hello")
    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_with_no_format_anything_else_gets_json(stream: io.StringIO) -> None:
    configure_logging("info", None, stream)
    structlog.get_logger().info("hello")
    assert lines(stream)[0]["event"] == "hello"


def test_logging_can_be_configured_again(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    first = io.StringIO()
    configure_logging("info", "json", first)
    log.info("one")
    configure_logging("info", "json", stream)
    log.info("two")
    logging.getLogger("grpc").warning("three")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(stream)] == ["two", "three"]


@pytest.mark.usefixtures("stream")
def test_logging_goes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger().info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert '"hello"' in captured.err


# Metrics


def test_every_series_is_there_at_zero_from_the_start() -> None:
    text = generate_latest(Metrics().registry).decode()
    for series in (
        'events_total{outcome="rejected"} 0.0',
        'deliveries_total{answer="429"} 0.0',
        "delivery_seconds_count 0.0",
        'attempts_bucket{le="1.0"} 0.0',
        "attempts_count 0.0",
        "outbox_events 0.0",
        "outbox_bytes 0.0",
        "outbox_oldest_age_seconds 0.0",
        "outbox_commits_total 0.0",
        "outbox_committed_events_total 0.0",
        "duplicate_evictions_total 0.0",
        "parked_settlements_total 0.0",
        "unreadable_events 0.0",
        "outbox_log_bytes 0.0",
        "outbox_incomplete_checkpoints_total 0.0",
        "dead_letters 0.0",
        'dead_lettered_total{reason="refused"} 0.0',
        "concurrency_limit 0.0",
        "in_flight 0.0",
        "log_lines_dropped_total 0.0",
        'pauses_total{reason="setup"} 0.0',
    ):
        assert f"\npointillist_destination_{series}\n" in text


def test_counting_shows_in_the_series() -> None:
    metrics = Metrics()
    metrics.events["accepted"].inc(3)
    metrics.count_delivery("2xx", 0.02)
    metrics.outbox_events.set_function(lambda: 42)
    metrics.relay_state.state("paused")
    text = generate_latest(metrics.registry).decode()
    for series in (
        'events_total{outcome="accepted"} 3.0',
        'deliveries_total{answer="2xx"} 1.0',
        'delivery_seconds_bucket{le="0.025"} 1.0',
        "outbox_events 42.0",
        'relay_state{pointillist_destination_relay_state="paused"} 1.0',
    ):
        assert f"\npointillist_destination_{series}\n" in text


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.events["accepted"].inc()
    assert other.registry.get_sample_value("pointillist_destination_events_total", {"outcome": "accepted"}) == 0.0


def test_no_two_metrics_share_a_name_in_openmetrics() -> None:
    # OpenMetrics leaves the suffix _total out of a family's name, so a gauge and a counter can clash there alone.
    text = fetch_from(Metrics(), accept="application/openmetrics-text")
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert text.endswith("# EOF\n")
    assert len(families) == len(set(families))
    assert {"pointillist_destination_dead_letters", "pointillist_destination_dead_lettered"} <= set(families)


@pytest.mark.parametrize(
    ("reason", "answer"),
    [
        ("2xx", "2xx"),
        ("204", "2xx"),
        ("302", "other"),
        ("400", "4xx"),
        ("429", "429"),
        ("503", "5xx"),
        ("600", "other"),
        ("timeout", "timeout"),
        ("refused", "refused"),
        ("reset", "reset"),
        ("truncated", "reset"),
        ("dns", "dns"),
        ("tls", "other"),
        ("anything", "other"),
    ],
)
def test_a_delivery_is_counted_in_one_of_few_classes(reason: str, answer: str) -> None:
    metrics = Metrics()
    metrics.count_delivery(reason, 0.02)
    assert metrics.registry.get_sample_value("pointillist_destination_deliveries_total", {"answer": answer}) == 1.0
    assert metrics.registry.get_sample_value("pointillist_destination_delivery_seconds_count") == 1.0


@pytest.mark.parametrize(("reason", "label"), [("max_age", "max_age"), ("400", "refused"), ("422", "refused")])
def test_a_dead_letter_is_counted_by_whether_it_was_refused_or_too_old(reason: str, label: str) -> None:
    metrics = Metrics()
    metrics.count_dead_letter(reason)
    assert metrics.registry.get_sample_value("pointillist_destination_dead_lettered_total", {"reason": label}) == 1.0


# The metrics server


def test_prometheus_can_read_the_metrics(server: MetricsServer) -> None:
    assert server.listen is not None
    assert server.listen.port != 0
    assert "pointillist_destination_outbox_events 0.0" in fetch(server.listen)


def test_the_metrics_can_be_served_over_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = start_metrics_server(Listen("::1", 0), Metrics())
    try:
        assert "pointillist_destination_outbox_events 0.0" in fetch(server.listen)
    finally:
        server.stop()


def test_a_port_in_use_is_refused_by_name(server: MetricsServer) -> None:
    assert server.listen is not None
    with pytest.raises(
        SettingsError, match=rf"^POINTILLIST_METRICS_LISTEN: 127\.0\.0\.1:{server.listen.port} is in use$"
    ):
        start_metrics_server(server.listen, Metrics())


def test_an_address_of_another_machine_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"^POINTILLIST_METRICS_LISTEN: cannot listen on 192\.0\.2\.1:0: "):
        start_metrics_server(Listen("192.0.2.1", 0), Metrics())


def test_a_stopped_server_leaves_its_port() -> None:
    server = start_metrics_server(Listen("127.0.0.1", 0), Metrics())
    server.stop()
    server.stop()
    again = start_metrics_server(server.listen, Metrics())
    again.stop()
    assert again.listen == server.listen


def test_no_address_means_no_server() -> None:
    server = start_metrics_server(None, Metrics())
    assert server.listen is None
    server.stop()


def test_requests_leave_nothing_on_standard_error(server: MetricsServer, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(server.listen)
    assert capfd.readouterr().err == ""
