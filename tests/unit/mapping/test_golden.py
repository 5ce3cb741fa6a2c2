"""Golden events: what becomes of each, worked out by hand from the mapping page and not by running the code.

A line of `tests/data/golden_*.jsonl` is {"name", "event", "becomes", "proto_json"}: `event` stands there as a library
writes it (its bytes are what is tested, down to `25.50` and `1e21`); `becomes` has one entry a message in it, the whole
record or {"outcome": "skipped" | "filtered" | "refused"}; `proto_json` says whether it is strict Segment JSON,
which a gRPC client may paste under the message's type.
"""

import json
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from google.protobuf import json_format

from pointillist_destination.v1 import event_pb2
from service.events.integrations import is_sent
from service.events.message import known_message_of
from service.events.segment_json import Imported, Result, Skipped, import_line
from service.events.validation import violations
from service.mapping.mapping_file import load_mapping
from service.sandbox.record_shape import record_fault
from tests.support.paths import DATA

MAPPING = load_mapping(None)
TAKEN_AT = 1_800_000_000_000  # milliseconds since the epoch: 2027-01-15T08:00:00Z
EVENT_KEY = '"event": '


@dataclass(frozen=True, slots=True)
class Golden:
    """One line: an event, as it is written, and what becomes of each message in it."""

    name: str
    event: str
    becomes: list[dict[str, Any]]
    proto_json: bool


def golden(file: str) -> list[Golden]:
    return [one_golden(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]


def one_golden(line: str) -> Golden:
    fields = json.loads(line)
    start = line.index(EVENT_KEY) + len(EVENT_KEY)
    _, end = json.JSONDecoder().raw_decode(line, start)  # as it is written: a parser would make 25.5 of 25.50
    return Golden(fields["name"], line[start:end], fields["becomes"], fields["proto_json"])


SHARED = golden("golden_shared.jsonl")
LIBRARIES = golden("golden_libraries.jsonl")
EVERY = SHARED + LIBRARIES


def outcome_of_event(event: event_pb2.Event) -> dict[str, Any]:
    """The record of an event that is to be sent, after the checks of the service."""
    message = known_message_of(event)
    assert violations(message, message.SerializeToString()) == []
    if not is_sent(message.integrations):
        return {"outcome": "filtered"}
    body = MAPPING.encode(event, TAKEN_AT)
    assert record_fault(body) is None
    record: dict[str, Any] = orjson.loads(body)
    return record


def outcome(result: Result) -> dict[str, Any]:
    """What becomes of one message of a file."""
    if isinstance(result, Imported):
        return outcome_of_event(result.event)
    if isinstance(result, Skipped):
        return {"outcome": "skipped", "type": result.type}
    return {"outcome": "refused", "at": [error.path for error in result.errors]}


@pytest.mark.parametrize("line", EVERY, ids=lambda line: line.name)
def test_an_event_in_a_file_becomes_exactly_its_record_or_its_outcome(line: Golden) -> None:
    # given: the event as its library writes it
    written = line.event.encode()

    # when
    outcomes = [outcome(result) for result in import_line(written)]

    # then
    assert outcomes == line.becomes


@pytest.mark.parametrize("line", [line for line in EVERY if line.proto_json], ids=lambda line: line.name)
def test_strict_segment_json_pasted_by_a_client_becomes_the_same(line: Golden) -> None:
    # given: the same text under the name of its type, as in a request
    kind = json.loads(line.event)["type"]
    pasted = f'{{"{kind}": {line.event}}}'

    # when
    event = json_format.Parse(pasted, event_pb2.Event(), ignore_unknown_fields=True)

    # then
    assert [outcome_of_event(event)] == line.becomes


def test_every_shared_event_has_its_golden_line() -> None:
    shared = (DATA / "segment_events.jsonl").read_text(encoding="utf-8").splitlines()

    assert [line.event for line in SHARED] == shared


def test_no_two_lines_have_the_same_name() -> None:
    names = [line.name for line in EVERY]

    assert sorted(set(names)) == sorted(names)
