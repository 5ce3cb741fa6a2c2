"""The benchmarks work: each row runs and finds figures. What the figures are is not looked at."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench, events
from benchmarks.child import Child, ChildError
from benchmarks.figures import Figure, Sample, percentile
from benchmarks.picture import draw
from benchmarks.rows_everything import ROW as EVERYTHING
from benchmarks.rows_in import poisson
from pointillist_destination.v1 import event_pb2, event_service_pb2
from tests.support.certificates import OPENSSL

QUICK = ("mapping", "stages", "drain", "nats_batch")
"""Rows that start few processes."""


NEEDS_OPENSSL = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


def marks_of(row: str) -> list[pytest.MarkDecorator]:
    marks = [] if row in QUICK else [pytest.mark.long]
    return [*marks, NEEDS_OPENSSL] if row == EVERYTHING else marks


@pytest.mark.parametrize("row", [pytest.param(row, marks=marks_of(row)) for row in bench.ROWS])
def test_a_row_runs_and_every_comparison_is_a_finite_number(row: str, tmp_path: Path) -> None:
    # given a file for the figures
    found = tmp_path / "figures.json"

    # when the row runs in its short form
    bench.main([row, "--short", "--json", str(found), "--folder", str(tmp_path)])

    # then there are figures, of that row alone, and each has been compared with something that is not zero
    figures = json.loads(found.read_text())["figures"]
    assert {figure["row"] for figure in figures} == {row}
    for figure in figures:
        assert all(math.isfinite(number) for number in figure["compared"])
        assert figure["compared"] or figure["compare"] == "alone"


def test_a_row_of_that_name_must_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["unarry"])

    assert "unarry" in capsys.readouterr().err


# -- the bytes that are sent


def test_a_batch_is_a_request_whose_events_have_ids_of_their_own() -> None:
    first, second = (event_service_pb2.BatchSendRequest.FromString(batch) for batch in events.batches("run-", 2, 30))

    assert (first.sequence, second.sequence) == (1, 2)
    ids = [event.track.message_id for event in (*first.events, *second.events)]
    assert len(set(ids)) == 60
    assert {len(message_id) for message_id in ids} == {36}


def test_a_track_request_has_the_message_id_it_comes_with() -> None:
    for message_id, request in events.track_requests("run-", 20):
        assert event_service_pb2.TrackRequest.FromString(request).track.message_id == message_id


def test_a_framed_request_is_one_grpc_message_without_an_id() -> None:
    framed = events.framed_track_request()

    assert framed[0] == 0
    assert int.from_bytes(framed[1:5], "big") == len(framed) - 5
    assert event_service_pb2.TrackRequest.FromString(framed[5:]).track.message_id == ""


def test_events_are_of_the_size_that_the_figures_are_stated_for() -> None:
    sizes = [len(template.with_id("x" * 36)) for template in events.event_templates()]

    assert 1_000 <= sum(sizes) / len(sizes) <= 1_300


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=36, max_size=36))
def test_a_template_changes_nothing_but_the_id(message_id: str) -> None:
    for template, event in zip(events.event_templates(), events.tracks(), strict=True):
        expected = event_pb2.Event()
        expected.CopyFrom(event)
        expected.track.message_id = message_id
        assert event_pb2.Event.FromString(template.with_id(message_id)) == expected


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_what_protobuf_writes(number: int) -> None:
    written = event_service_pb2.BatchSendRequest(sequence=number).SerializeToString()

    assert events.SEQUENCE_KEY + events.varint(number) == (written or b"\x08\x00")


# -- figures


@pytest.mark.parametrize(
    ("figure", "compared", "summary"),
    [
        (Figure("r", "f", "/s", [Sample(50), Sample(30)], [Sample(100), Sample(50)]), [0.5, 0.6], "0.55x (0.5 to 0.6)"),
        (Figure("r", "f", "µs", [Sample(20)], [Sample(60)], compare="inverse"), [3.0], "3x"),
        (Figure("r", "f", "MiB", [Sample(120)], [Sample(100)], compare="difference"), [20.0], "20 MiB"),
        (Figure("r", "f", "s", [Sample(1.25)], compare="alone"), [1.25], "1.25 s"),
    ],
)
def test_rounds_are_compared_each_with_itself(figure: Figure, compared: list[float], summary: str) -> None:
    assert figure.compared() == pytest.approx(compared)
    assert figure.summary() == summary


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    value = percentile(values, percent)

    assert value in values
    assert sum(other <= value for other in values) * 100 >= percent * len(values)
    assert sum(other < value for other in values) * 100 < percent * len(values)


def test_arrivals_are_in_order_within_their_time_and_the_same_for_the_same_seed() -> None:
    at = poisson(rate=1000.0, seconds=1.0, seed=7)

    assert at == sorted(at)
    assert 0 < at[0] < at[-1] < 1.0
    assert at == poisson(rate=1000.0, seconds=1.0, seed=7)


def test_the_picture_is_svg_that_names_every_stage() -> None:
    drawn = draw([Figure("stages", "parse & check", "µs", [Sample(3)]), Figure("stages", "POST", "µs", [Sample(9)])])

    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"parse & check", "POST", "9.0 µs", "75%"} <= set(texts)


# -- children


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(ChildError, match=r"No module named benchmarks\.nobody"):
        Child("nobody")


def test_a_child_ends_with_its_context_and_its_cpu_and_memory_are_counted() -> None:
    with Child("sink") as sink:
        cpu, memory = sink.cpu(), sink.memory()
        assert cpu > 0
        assert 0 < memory <= sink.peak_memory() + 1

    with pytest.raises(OSError, match="clock_getcpuclockid"):
        sink.cpu()
