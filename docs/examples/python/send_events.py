# ruff: noqa: INP001, T201  a program to copy, not a package; what it prints is its result
"""Sends an Identify, a Track and a batch of a hundred events, one of them bad.

    python send_events.py [HOST:PORT] [SERVICE_CONFIG]

Unary calls are tried again by gRPC itself, as the service config says. A stream is the caller's to resume: from the
first batch that was not answered. Each event has a message_id, so that whatever is sent twice is taken once.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
from google.rpc import error_details_pb2

from pointillist_destination.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc

SERVICE_CONFIG = Path(__file__).parents[3] / "deploy" / "service-config.json"
# CANCELLED, where we did not cancel, is a connection that broke: the calls on it may have been stored or not.
RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
MAX_RESUMES = 60  # in a row, without an answer between them
RESUME_DELAY = 1.0  # seconds, where the server does not say
BAD = 41  # the index of the event that nobody is the user of


def connect(target: str, service_config: Path = SERVICE_CONFIG) -> grpc.Channel:
    """Open a channel that waits and tries again as the service config says.

    Each has a connection of its own. At most 50 calls of a connection may wait for a delivery: who has more at a time,
    or more than a hundred calls of any kind, opens a second channel and takes them in turn.
    """
    options = [("grpc.service_config", service_config.read_text()), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(target, options=options)


def send_batches(
    stub: event_service_pb2_grpc.EventServiceStub, batches: Iterable[event_service_pb2.BatchSendRequest]
) -> Iterator[event_service_pb2.BatchSendResponse]:
    """Send batches and yield their answers, in order; a stream that ends early is opened again.

    Raises:
        grpc.RpcError: the server cannot be had, or refuses for a reason that will not go away.
    """
    unanswered = deque(batches)
    resumes = 0
    while unanswered:
        stream = stub.BatchSend(iter(tuple(unanswered)))
        try:
            for answer in stream:
                unanswered.popleft()
                resumes = 0
                yield answer
        except grpc.RpcError:
            resumes += 1
            if stream.code() not in RESUMABLE or resumes > MAX_RESUMES:
                raise
            pushback = dict(stream.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
            time.sleep(RESUME_DELAY if pushback is None else int(pushback) / 1000)


def hundred_events(run: str) -> list[event_pb2.Event]:
    """A hundred track messages; one has neither a user_id nor an anonymous_id."""
    events = []
    for index in range(100):
        user_id = "" if index == BAD else "u-1"
        track = event_pb2.Track(user_id=user_id, event="Product Viewed", message_id=f"{run}-{index}")
        track.properties.update({"position": index})
        events.append(event_pb2.Event(track=track))
    return events


def faults_of(rejection: event_service_pb2.Rejection) -> list[str]:
    """What is wrong with a refused event, one line a field."""
    found = []
    for detail in rejection.status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            found += [f"{violation.field} {violation.description}" for violation in bad_request.field_violations]
    return found


def main(target: str = "localhost:50051", service_config: str = str(SERVICE_CONFIG)) -> None:
    """Send, and say what became of it."""
    run = f"python-{time.time_ns()}"
    with connect(target, Path(service_config)) as channel:
        stub = event_service_pb2_grpc.EventServiceStub(channel)
        identify = event_pb2.Identify(user_id="u-1", message_id=f"{run}-identify")
        identify.traits.update({"plan": "premium"})
        receipt = stub.Identify(event_service_pb2.IdentifyRequest(identify=identify)).receipt
        print(f"identify {receipt.message_id}: {event_service_pb2.Outcome.Name(receipt.outcome)}")

        track = event_pb2.Track(user_id="u-1", event="Order Completed", message_id=f"{run}-track")
        track.properties.update({"revenue": 25.5, "currency": "USD"})
        receipt = stub.Track(event_service_pb2.TrackRequest(track=track)).receipt
        print(f"track {receipt.message_id}: {event_service_pb2.Outcome.Name(receipt.outcome)}")

        batch = event_service_pb2.BatchSendRequest(sequence=1, events=hundred_events(run))
        for answer in send_batches(stub, [batch]):
            print(f"batch {answer.sequence}: {answer.accepted} accepted, {len(answer.rejections)} refused")
            for rejection in answer.rejections:
                print(f"event {rejection.index} ({rejection.message_id}) refused: {'; '.join(faults_of(rejection))}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
