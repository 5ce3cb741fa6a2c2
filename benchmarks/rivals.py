"""The gRPC servers that ours is measured beside, each a process: `python -m benchmarks.rivals KIND`.

empty           a Track that answers at once with nothing, on the same server with the same options: gRPC's own cost
decode          a BatchSend that parses each request and answers: what a batch costs before anything is done
naive URL       a Track that POSTs the event with httpx2 and then answers: what one writes in an afternoon
publish URL     a Track and a BatchSend that publish to JetStream, many at a time, and answer after its acknowledgements
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc
import uvloop
from google.protobuf import json_format

from benchmarks.control import until_end_of_input
from pointillist_destination.v1 import event_service_pb2
from service.events.batch_frame import read_batch
from service.server.batch_send import BATCHES_AHEAD
from service.server.event_service import SERVICE_NAME
from service.server.grpc_server import OPTIONS

PUBLISHED = "RIVAL"  # the stream that `publish` makes, and its subject

Handlers: TypeAlias = dict[str, "grpc.RpcMethodHandler[Any, Any]"]


def empty() -> Handlers:
    async def track(_request: bytes, _context: object) -> bytes:
        return b""

    return {"Track": grpc.unary_unary_rpc_method_handler(track)}


def decode() -> Handlers:
    async def batch_send(
        requests: AsyncIterator[event_service_pb2.BatchSendRequest], _context: object
    ) -> AsyncIterator[event_service_pb2.BatchSendResponse]:
        async for request in requests:
            yield event_service_pb2.BatchSendResponse(sequence=request.sequence, accepted=len(request.events))

    handler = grpc.stream_stream_rpc_method_handler(
        batch_send,
        request_deserializer=event_service_pb2.BatchSendRequest.FromString,
        response_serializer=event_service_pb2.BatchSendResponse.SerializeToString,
    )
    return {"BatchSend": handler}


def naive(url: str) -> Handlers:
    import httpx2  # noqa: PLC0415  it takes 20 MB, which the other rivals do not need

    client = httpx2.AsyncClient(headers={"apiToken": "token"})

    async def track(request: event_service_pb2.TrackRequest, _context: object) -> event_service_pb2.TrackResponse:
        message_id = request.track.message_id
        body = json_format.MessageToDict(request.track)
        answer = await client.post(url, json=body, headers={"Idempotency-Key": message_id})
        answer.raise_for_status()
        receipt = event_service_pb2.Receipt(message_id=message_id, outcome=event_service_pb2.OUTCOME_DELIVERED)
        return event_service_pb2.TrackResponse(receipt=receipt)

    handler = grpc.unary_unary_rpc_method_handler(
        track,
        request_deserializer=event_service_pb2.TrackRequest.FromString,
        response_serializer=event_service_pb2.TrackResponse.SerializeToString,
    )
    return {"Track": handler}


async def publish(url: str) -> Handlers:
    import nats  # noqa: PLC0415  the other rivals do not need it
    from nats.js.api import RetentionPolicy  # noqa: PLC0415  as above

    jetstream = (await nats.connect(url)).jetstream()
    await jetstream.add_stream(name=PUBLISHED, subjects=[PUBLISHED], retention=RetentionPolicy.WORK_QUEUE)

    async def track(request: bytes, _context: object) -> bytes:
        await (await jetstream.publish_async(PUBLISHED, request))
        return b""

    async def store(sequence: int, events: Sequence[bytes]) -> bytes:
        acknowledged = [await jetstream.publish_async(PUBLISHED, event) for event in events]
        await asyncio.gather(*acknowledged)
        return event_service_pb2.BatchSendResponse(sequence=sequence, accepted=len(events)).SerializeToString()

    async def batch_send(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(BATCHES_AHEAD)

        async def read() -> None:
            async for request in requests:
                frame = read_batch(request)
                await answers.put(asyncio.create_task(store(frame.sequence, frame.events)))
            await answers.put(None)

        reading = asyncio.create_task(read())
        while (answer := await answers.get()) is not None:
            yield await answer
        await reading

    return {
        "Track": grpc.unary_unary_rpc_method_handler(track),
        "BatchSend": grpc.stream_stream_rpc_method_handler(batch_send),
    }


async def handlers_of(kind: str, arguments: list[str]) -> Handlers:
    match kind:
        case "empty":
            return empty()
        case "decode":
            return decode()
        case "naive":
            return naive(*arguments)
        case "publish":
            return await publish(*arguments)
        case _:
            raise ValueError(f"there is no rival {kind!r}; there are empty, decode, naive and publish")


async def main(kind: str, *arguments: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers = await handlers_of(kind, list(arguments))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await until_end_of_input()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
