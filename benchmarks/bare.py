"""The bare loops, which do one thing and nothing else: `python -m benchmarks.bare`.

    {"do": "post", "url", "run", "count", "lanes"}      POST the events' records with pyreqwest, flat out
    {"do": "paced_post", "url", "run", "at": [seconds]} one POST at each of these times
    {"do": "paced_fsync", "path", "at": [seconds]}      a page written over and fsynced at each of these times

Each is answered with {"seconds": float, "cpu": seconds of CPU meanwhile, "latencies": [seconds]}. The bodies are the
very bytes that the service POSTs, and so are the headers that differ from one POST to the next. They are made before
the clock starts.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop
from pyreqwest.client import Client, ClientBuilder

from benchmarks.control import serve_commands
from benchmarks.events import event_templates, message_ids
from pointillist_destination.v1 import event_pb2
from service.mapping.mapping_file import load_mapping

ACCEPTED_AT = 1_772_000_000_000  # milliseconds since the epoch; any will do
PAGE = bytes(4096)  # the least that SQLite writes to its log for one commit


def posts(run: str, count: int) -> list[tuple[str, bytes]]:
    """message_ids and bodies."""
    mapping = load_mapping(None)
    bodies = [
        mapping.encode(event_pb2.Event.FromString(template.with_id("x" * 36)), ACCEPTED_AT)
        for template in event_templates()
    ]
    return [(message_id, bodies[index % len(bodies)]) for index, message_id in zip(range(count), message_ids(run))]  # noqa: B905  the ids do not end


def make_client(connections: int) -> Client:
    return (
        ClientBuilder()
        .http1_only()
        .pool_max_idle_per_host(connections)
        .default_headers({"Content-Type": "application/json", "apiToken": "token"})
        .build()
    )


async def post(url: str, run: str, count: int, lanes: int) -> dict[str, Any]:
    prepared = iter(posts(run, count))
    latencies: list[float] = []
    async with make_client(lanes) as client:

        async def lane() -> None:
            for message_id, body in prepared:
                request = client.post(url).header("Idempotency-Key", message_id).body_bytes(body).build()
                answer = await request.send()
                if answer.status != 200:
                    raise RuntimeError(f"the sink answered {answer.status}")

        started, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(lane() for _ in range(lanes)))
        seconds = time.monotonic() - started
        return {"seconds": seconds, "cpu": time.process_time() - cpu, "latencies": latencies}


async def paced(at: Sequence[float], once: Callable[[int], Awaitable[object]]) -> dict[str, Any]:
    latencies: list[float] = []

    async def timed(index: int) -> None:
        started = time.monotonic()
        await once(index)
        latencies.append(time.monotonic() - started)

    start, cpu = time.monotonic(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for index, due in enumerate(at):
            await asyncio.sleep(max(0.0, start + due - time.monotonic()))
            tasks.create_task(timed(index))
    return {"seconds": time.monotonic() - start, "cpu": time.process_time() - cpu, "latencies": latencies}


async def paced_post(url: str, run: str, at: Sequence[float]) -> dict[str, Any]:
    prepared = posts(run, len(at))
    async with make_client(8) as client:

        async def once(index: int) -> None:
            message_id, body = prepared[index]
            await client.post(url).header("Idempotency-Key", message_id).body_bytes(body).build().send()

        await once(0)  # the connection is made before the clock starts
        return await paced(at, once)


async def paced_fsync(path: Path, at: Sequence[float]) -> dict[str, Any]:
    """The pages are there before the clock starts: SQLite's log is written over, too, once it has its size."""
    with path.open("wb", buffering=0) as file:
        file.write(PAGE * len(at))
        os.fsync(file.fileno())
        file.seek(0)

        async def once(_: int) -> None:
            file.write(PAGE)
            os.fsync(file.fileno())

        return await paced(at, once)


async def handle(command: dict[str, Any]) -> dict[str, Any]:
    match command["do"]:
        case "post":
            return await post(command["url"], command["run"], command["count"], command["lanes"])
        case "paced_post":
            return await paced_post(command["url"], command["run"], command["at"])
        case "paced_fsync":
            return await paced_fsync(Path(command["path"]), command["at"])
        case other:
            raise ValueError(f"the bare loop knows no command {other!r}")


async def main() -> None:
    print(json.dumps({}), flush=True)
    await serve_commands(handle)


if __name__ == "__main__":
    uvloop.run(main())
