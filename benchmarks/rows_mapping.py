"""Mapping alone, in this process: an event that was parsed already, to the bytes of the POST."""

import time
from collections.abc import Callable

from google.protobuf import json_format

from benchmarks.bare import ACCEPTED_AT
from benchmarks.events import imported
from benchmarks.figures import Figure, Sample
from benchmarks.plan import Plan
from pointillist_destination.v1 import event_pb2
from service.mapping.mapping_file import load_mapping


def mapping(plan: Plan) -> list[Figure]:
    """Mapping.encode beside json_format.MessageToDict, on all events of the tests' data."""
    passes = plan.count(200, 3)
    payloads = [event.SerializeToString() for event in imported()]
    encode = load_mapping(None).encode
    mine, theirs = [], []
    for _ in range(plan.rounds):
        mine.append(_micros(payloads, passes, lambda event: encode(event, ACCEPTED_AT)))
        theirs.append(_micros(payloads, passes, json_format.MessageToDict))
    return [
        Figure(
            "mapping",
            "parsed event to JSON",
            "µs/record",
            mine,
            theirs,
            "MessageToDict",
            ">= 3x faster",
            "inverse",
        )
    ]


def _micros(payloads: list[bytes], passes: int, work: Callable[[event_pb2.Event], object]) -> Sample:
    """Microseconds a record. Each event is parsed anew for each pass, outside the clock, as none is mapped twice."""
    seconds = 0.0
    for _ in range(passes):
        events = [event_pb2.Event.FromString(payload) for payload in payloads]
        started = time.perf_counter()
        for event in events:
            work(event)
        seconds += time.perf_counter() - started
    return Sample(seconds / passes / len(payloads) * 1e6)
