"""The truth table of the integrations object, where a caller meets it: at the calls, in a batch and in a file."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict

from pointillist_destination.v1.event_pb2 import Event, Identify, Track
from pointillist_destination.v1.event_service_pb2 import (
    OUTCOME_ACCEPTED,
    OUTCOME_FILTERED,
    OUTCOME_VALIDATED,
    BatchSendRequest,
    BatchSendResponse,
    IdentifyRequest,
    SendOptions,
    TrackRequest,
)
from service.events.integrations import is_sent
from service.events.segment_json import Imported, import_line
from tests.support.servers import Serving, serving
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all rows: asking it keeps nothing

# Objects, which a call and a file can both hold, and whether an event with it is sent.
OBJECTS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"All": True}, True),
    ({"All": False}, False),
    ({"all": False}, False),
    ({"ALL": False}, False),
    ({"All": "false"}, True),
    ({"All": 0}, True),
    ({"All": None}, True),
    ({"All": {}}, True),
    ({"all": "false"}, True),
    ({"ALL": 0}, True),
    ({"All": False, "Pointillist": True}, True),
    ({"All": False, "Pointillist": {}}, True),
    ({"All": False, "Pointillist": None}, True),
    ({"All": False, "Pointillist": {"region": "eu"}}, True),
    ({"all": False, "Pointillist": True}, True),
    ({"ALL": False, "Pointillist": {"region": "eu"}}, True),
    ({"All": False, "pointillist": True}, False),
    ({"Pointillist": False}, False),
    ({"All": True, "Pointillist": False}, False),
    ({"pointillist": False}, True),
    ({"Pointillist ": False}, True),
    ({"Pointillist": "false"}, True),
    ({"Pointillist": 0}, True),
    ({"Pointillist": ""}, True),
    ({"All": False, "Google Analytics": True}, False),
    ({"All": False, "Pointillist": True, "Warehouses": {"all": False}}, True),
    ({"Warehouses": {"all": False, "Pointillist": False}}, True),
]
# What only raw JSON can hold.
NO_OBJECTS: list[object] = [None, False, True, 0, 1, "", "none", "All", [], [False], ["Pointillist"]]
ROWS = pytest.mark.parametrize(("integrations", "sent"), OBJECTS, ids=json.dumps)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    async with serving(tmp_path_factory.mktemp("integrations")) as server:
        yield server


def line(message: dict[str, Any]) -> bytes:
    return json.dumps({"type": "track", "userId": "u-1", "event": "E"} | message).encode()


def track(message_id: str = "", integrations: dict[str, Any] | None = None) -> Track:
    """A track with these integrations, or with none."""
    given = {} if integrations is None else {"integrations": integrations}
    return ParseDict({"userId": "u-1", "event": "E", "messageId": message_id, **given}, Track())


async def batch_answer(server: Serving, *messages: Track) -> BatchSendResponse:
    """The answer to one batch."""
    call = server.events.BatchSend()
    await call.write(BatchSendRequest(sequence=1, events=[Event(track=message) for message in messages]))
    await call.done_writing()
    (answer,) = [answer async for answer in call]
    return answer


def imported(written: bytes) -> list[bool]:
    """Whether each message of a line is sent."""
    events = [result.event for result in import_line(written) if isinstance(result, Imported)]
    return [is_sent(event.track.integrations) for event in events]


@ROWS
async def test_a_track_is_filtered_exactly_where_its_integrations_say_no(
    server: Serving, integrations: dict[str, Any], sent: bool
) -> None:
    given = track(integrations=integrations)

    answer = await server.events.Track(TrackRequest(track=given, options=SendOptions(validate_only=True)))

    assert answer.receipt.outcome == (OUTCOME_VALIDATED if sent else OUTCOME_FILTERED)


@ROWS
async def test_an_identify_is_filtered_exactly_where_its_integrations_say_no(
    server: Serving, integrations: dict[str, Any], sent: bool
) -> None:
    identify = ParseDict({"anonymousId": "a-1", "integrations": integrations}, Identify())

    answer = await server.events.Identify(IdentifyRequest(identify=identify, options=SendOptions(validate_only=True)))

    assert answer.receipt.outcome == (OUTCOME_VALIDATED if sent else OUTCOME_FILTERED)


async def test_an_event_without_integrations_is_sent(server: Serving) -> None:
    given = track()

    answer = await server.events.Track(TrackRequest(track=given, options=SendOptions(validate_only=True)))

    assert answer.receipt.outcome == OUTCOME_VALIDATED


async def test_what_is_validated_would_be_accepted_and_what_is_filtered_is_kept_nowhere(server: Serving) -> None:
    # given
    yes = track("yes")
    no = track("no", {"Pointillist": False})

    # when
    refused = await server.events.Track(TrackRequest(track=no))
    taken = await server.events.Track(TrackRequest(track=yes))

    # then
    assert (refused.receipt.outcome, taken.receipt.outcome) == (OUTCOME_FILTERED, OUTCOME_ACCEPTED)
    await until(lambda: "yes" in server.delivered)
    assert "no" not in server.delivered


async def test_a_filtered_event_is_not_remembered_as_a_duplicate(server: Serving) -> None:
    # given
    no = track("again", {"All": False})
    await server.events.Track(TrackRequest(track=no))

    # when: the same message comes again, and may be sent now
    answer = await server.events.Track(TrackRequest(track=track("again")))

    # then
    assert answer.receipt.outcome == OUTCOME_ACCEPTED


async def test_a_bad_event_is_refused_before_its_integrations_are_asked(server: Serving) -> None:
    # given: an event that says no, and has no event name
    nameless = track(integrations={"All": False})
    nameless.ClearField("event")

    # when
    answer = await batch_answer(server, nameless)

    # then
    assert (len(answer.rejections), answer.filtered) == (1, 0)


async def test_a_batch_counts_what_the_table_says(server: Serving) -> None:
    # given: an event for every row
    given = [track(integrations=integrations) for integrations, _ in OBJECTS]

    # when
    answer = await batch_answer(server, *given)

    # then
    sent = sum(sent for _, sent in OBJECTS)
    assert (answer.accepted, answer.filtered, len(answer.rejections)) == (sent, len(OBJECTS) - sent, 0)


@ROWS
async def test_a_message_in_a_file_is_filtered_exactly_where_its_integrations_say_no(
    integrations: dict[str, Any], sent: bool
) -> None:
    assert imported(line({"integrations": integrations})) == [sent]


@pytest.mark.parametrize("integrations", NO_OBJECTS, ids=json.dumps)
async def test_a_message_in_a_file_whose_integrations_are_no_object_is_sent(integrations: object) -> None:
    assert imported(line({"integrations": integrations})) == [True]


async def test_a_message_in_a_file_without_integrations_is_sent() -> None:
    assert imported(line({})) == [True]


@ROWS
async def test_a_batch_body_speaks_for_its_items(integrations: dict[str, Any], sent: bool) -> None:
    body = {"batch": [json.loads(line({}))], "integrations": integrations}

    assert imported(json.dumps(body).encode()) == [sent]
