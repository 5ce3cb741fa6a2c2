"""Events whose bytes on the disk changed: they become dead letters with the reason `unreadable`, and harm no other."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pointillist_destination.v1 import dead_letter_service_pb2 as letters_pb2
from pointillist_destination.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from pointillist_destination.v1.event_service_pb2 import OUTCOME_ACCEPTED, TrackRequest
from tests.support.clock import HandClock
from tests.support.events import entries, entry, track
from tests.support.outboxes import opened
from tests.support.servers import serving
from tests.support.waiting import until

DAMAGED = b"\xff" + entry(1).payload[1:]


async def damage(path: Path) -> None:
    """Make an outbox with three events, and flip bits in the second."""
    async with opened(path, HandClock()) as outbox:
        await outbox.put(entries(3))
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE event SET payload = ? WHERE message_id = 'm-1'", (DAMAGED,))


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_an_event_with_a_flipped_bit_becomes_a_dead_letter_and_the_others_go_on(
    tmp_path: Path, workers: str
) -> None:
    await damage(tmp_path / "outbox.db")
    async with serving(tmp_path, {"POINTILLIST_RELAY_WORKERS": workers}) as server:
        service = DeadLetterServiceStub(server.channel)

        # when it is met, then it is a dead letter, and events are taken and delivered
        await until(lambda: len(server.delivered) == 2)
        receipt = (await server.events.Track(TrackRequest(track=track(7)))).receipt
        assert receipt.outcome == OUTCOME_ACCEPTED
        await until(lambda: len(server.delivered) == 3)
        listed = letters_pb2.ListResponse()
        while not listed.dead_letters:
            listed = await service.List(letters_pb2.ListRequest())
        [letter] = listed.dead_letters
        assert (letter.message_id, letter.reason, letter.raw) == ("m-1", "unreadable", DAMAGED)
        assert not letter.HasField("event")

        # and it is shown without a record, left by a replay and counted
        shown = await service.Get(letters_pb2.GetRequest(id=letter.id))
        assert shown.dead_letter == letter
        assert not shown.HasField("record")
        replayed = await service.Replay(letters_pb2.ReplayRequest(all=True))
        assert (replayed.replayed, replayed.still_invalid) == (0, 1)
        others = letters_pb2.DeadLetterFilter(reason="400")
        assert (await service.Replay(letters_pb2.ReplayRequest(filter=others))).still_invalid == 0

        # and deleted with all others
        assert (await service.Delete(letters_pb2.DeleteRequest(all=True))).deleted == 1
