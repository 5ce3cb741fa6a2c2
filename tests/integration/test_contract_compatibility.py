"""A caller whose stubs were made from the first contract, kept as a descriptor set, and today's server.

Its messages are made from that descriptor set alone, in a pool of their own, so that nothing of today's stubs helps.
A contract of a later version adds a file beside it; none is ever made anew.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2

from pointillist_destination.v1 import event_service_pb2
from service.events.segment_json import Imported, import_message
from service.sandbox.server import Behaviour, Sandbox
from tests.support.paths import PROJECT
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import until

CONTRACTS = sorted((PROJECT / "tests" / "data").glob("contract_*.binpb"))
PACKAGE = "pointillist_destination.v1"


class OldCaller:
    """Calls a server with what a descriptor set says, and reads JSON out of the answers."""

    def __init__(self, contract: Path, channel: grpc.aio.Channel) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(contract.read_bytes()).file:
            self._pool.Add(file)
        self._channel = channel

    def message(self, name: str, fields: dict[str, Any]) -> Any:
        """Make a message of the old contract from its JSON form."""
        message_class = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        return json_format.ParseDict(fields, message_class(), descriptor_pool=self._pool)

    async def call(self, service: str, method: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Call a unary method."""
        call: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = self._channel.unary_unary(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._response_class(service, method).FromString,
        )
        return self._json(await call(self.message(f"{method}Request", fields)))

    async def batch_send(self, *batches: dict[str, Any]) -> list[dict[str, Any]]:
        """Send batches on one stream."""
        call: grpc.aio.StreamStreamMultiCallable[Any, Any] = self._channel.stream_stream(
            f"/{PACKAGE}.EventService/BatchSend",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._response_class("EventService", "BatchSend").FromString,
        )
        stream = call(iter([self.message("BatchSendRequest", batch) for batch in batches]))
        return [self._json(answer) async for answer in stream]

    def _response_class(self, service: str, method: str) -> Any:
        described = self._pool.FindServiceByName(f"{PACKAGE}.{service}").FindMethodByName(method)
        return message_factory.GetMessageClass(described.output_type)

    def _json(self, message: Any) -> dict[str, Any]:
        # Details of a status are packed messages that the old contract has no name for.
        for rejection in getattr(message, "rejections", ()):
            rejection.status.ClearField("details")
        return json_format.MessageToDict(message, descriptor_pool=self._pool)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as running:
        yield running


@pytest.fixture(params=CONTRACTS, ids=lambda contract: contract.stem)
async def caller(request: pytest.FixtureRequest, sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[OldCaller]:
    """A caller with an old contract, and a server of today."""
    async with (
        running_server(sandbox, tmp_path) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield OldCaller(request.param, channel)


async def test_old_stubs_send_events_one_by_one_and_in_batches(caller: OldCaller, sandbox: Sandbox) -> None:
    # when
    track = {
        "userId": "u-1",
        "messageId": "track",
        "event": "Order Completed",
        "properties": {"revenue": 25.5},
        "context": {"device": {"type": "ios"}, "campaign": {"name": "Spring", "extra": {"id": "7"}}},
        "timestamp": "2026-02-23T22:28:55.111Z",
    }
    options = {"includeRecord": True}
    tracked = await caller.call("EventService", "Track", {"track": track, "options": options})
    identify = {"anonymousId": "a-1", "messageId": "identify", "traits": {"plan": "premium"}}
    identified = await caller.call("EventService", "Identify", {"identify": identify})
    batch = {"sequence": "7", "events": [{"track": track}, {}, {"identify": {"userId": "u-2", "messageId": "new"}}]}
    [answered] = await caller.batch_send(batch)

    # then
    receipt = tracked["receipt"]
    assert (receipt["messageId"], receipt["outcome"]) == ("track", "OUTCOME_ACCEPTED")
    assert receipt["record"]["numbers"] == {"revenue": "25.5"}
    assert receipt["record"]["labels"]["device_type"] == "ios"
    assert identified == {"receipt": {"messageId": "identify", "outcome": "OUTCOME_ACCEPTED"}}
    assert (answered["sequence"], answered["accepted"], answered["duplicates"]) == ("7", 1, 1)
    assert [rejection["index"] for rejection in answered["rejections"]] == [1]
    assert await until_taken(sandbox, 3) == {"track", "identify", "new"}


async def test_old_stubs_are_told_what_is_wrong(caller: OldCaller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.call("EventService", "Track", {"track": {"event": "Order Completed"}})

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details if isinstance(details, bytes) else details.encode())
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert any(detail.Unpack(info) for detail in status.details)
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert info.domain == "pointillist-destination"
    assert bad_request.field_violations


async def test_old_stubs_see_replay_and_delete_dead_letters(caller: OldCaller, sandbox: Sandbox) -> None:
    # given
    sandbox.behaviour = Behaviour({"400": 1.0})
    for number in range(2):
        track = {"userId": "u", "event": f"Event {number}", "messageId": f"m-{number}"}
        await caller.call("EventService", "Track", {"track": track})

    async def listed() -> list[dict[str, Any]]:
        letters: list[dict[str, Any]] = (await caller.call("DeadLetterService", "List", {})).get("deadLetters", [])
        return letters

    await until(lambda: sandbox.answers["400"] >= 2)
    letters = await listed()
    while len(letters) < 2:  # the sandbox answers before the outbox has settled
        letters = await listed()

    # when
    sandbox.behaviour = Behaviour()
    shown = await caller.call("DeadLetterService", "Get", {"id": letters[0]["id"]})
    replayed = await caller.call("DeadLetterService", "Replay", {"filter": {"ids": [letters[0]["id"]]}})
    deleted = await caller.call("DeadLetterService", "Delete", {"all": True})

    # then
    assert shown["deadLetter"]["reason"] == "400"
    assert shown["record"]["eventType"] == shown["deadLetter"]["event"]["track"]["event"]
    assert (replayed, deleted) == ({"replayed": "1"}, {"deleted": "1"})
    assert await until_taken(sandbox, 1) == {letters[0]["messageId"]}
    assert await listed() == []


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.stem)
def test_the_contract_of_today_breaks_none_before_it(contract: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    buf = shutil.which("buf", path=path)
    assert buf is not None

    judged = subprocess.run(
        [buf, "breaking", "--against", str(contract)], cwd=PROJECT, capture_output=True, text=True, check=False
    )

    assert (judged.returncode, judged.stdout) == (0, "")


def test_the_reference_is_what_the_protos_say() -> None:
    made = subprocess.run(
        [sys.executable, "docs/api.py", "--print"], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert made.stdout == (PROJECT / "docs" / "api.md").read_text(), "python docs/api.py makes it anew"


def test_the_message_after_the_move_from_segment_is_the_message_before_it() -> None:
    page = (PROJECT / "docs" / "from-segment.md").read_text()
    before, after = re.findall(r"```json\n(.*?)```", page, re.DOTALL)

    imported = import_message(json.loads(before))
    request = json_format.Parse(after, event_service_pb2.TrackRequest())

    assert isinstance(imported, Imported)
    assert imported.event.track == request.track
