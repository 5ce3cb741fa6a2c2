"""Honest callers, each a process of its own: Track, BatchSend with 10 events, and one that watches and checks health.

    python -m tests.acceptance.honest_callers track|batch|health ADDRESS NAME [TOKEN]

It works until its standard input ends, and then prints one line of JSON with what it saw.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from pointillist_destination.v1.event_pb2 import Event
from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, BatchSendResponse, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from tests.support.events import track
from tests.support.paths import PROJECT
from tests.support.processes import environment

BatchCall: TypeAlias = "grpc.aio.StreamStreamCall[BatchSendRequest, BatchSendResponse]"
SERVICE_CONFIG = (PROJECT / "deploy/service-config.json").read_text(encoding="utf-8")
INTERVAL = 0.02  # seconds between two calls, from start to start
PROBE_INTERVAL = 0.25  # seconds
PROBE_TIMEOUT = 0.5  # seconds
CALL_TIMEOUT = 10.0  # seconds
BATCH = 10  # events
OPTIONS = [("grpc.service_config", SERVICE_CONFIG), ("grpc.enable_http_proxy", 0)]


@dataclass
class Seen:
    """What one caller saw."""

    codes: dict[str, int] = field(default_factory=dict)
    """How its calls ended; a probe that was not answered in time counts as such."""
    milliseconds: list[float] = field(default_factory=list)
    """Of each call that ended well."""
    accepted: list[str] = field(default_factory=list)
    """The message_ids that were answered OK."""
    missed_in_a_row: int = 0
    """The most probes that failed one after the other."""
    changes: list[tuple[float, str, int]] = field(default_factory=list)
    """Of health, as its watcher heard of them: wall time, name, status."""

    def percentile(self, share: float) -> float:
        """The milliseconds within which this share of the good calls ended."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("inf")

    @property
    def ok_share(self) -> float:
        """The share of calls that ended well."""
        return self.codes.get("OK", 0) / max(1, sum(self.codes.values()))


class Caller:
    """One caller, until it is told to stop."""

    def __init__(self, address: str, name: str, token: str | None) -> None:
        self._address = address
        self._name = name
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._codes: Counter[str] = Counter()
        self.seen = Seen()
        self.stopped = asyncio.Event()

    async def track(self) -> None:
        """Send one event after the other."""
        async with grpc.aio.insecure_channel(self._address, options=OPTIONS) as channel:
            stub = EventServiceStub(channel)
            async for number in self._paced(INTERVAL):
                request = TrackRequest(track=track(number))
                request.track.message_id = message_id = f"{self._name}-{number}"
                started = time.perf_counter()
                try:
                    await stub.Track(request, metadata=self._metadata, timeout=CALL_TIMEOUT)
                except grpc.aio.AioRpcError as error:
                    self._codes[error.code().name] += 1
                else:
                    self._note_ok(started, [message_id])

    async def batch(self) -> None:
        """Send one batch after the other on a stream; where it ends, send the batch again on another."""
        async with grpc.aio.insecure_channel(self._address, options=OPTIONS) as channel:
            stub = EventServiceStub(channel)
            call: BatchCall | None = None
            async for number in self._paced(INTERVAL):
                request = BatchSendRequest(sequence=number)
                ids = [f"{self._name}-{number}-{index}" for index in range(BATCH)]
                for one in ids:
                    event = Event(track=track(0))
                    event.track.message_id = one
                    request.events.append(event)
                started = time.perf_counter()
                code = "DEADLINE_EXCEEDED"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CALL_TIMEOUT):
                        while code != "OK":
                            call = call or stub.BatchSend(metadata=self._metadata)
                            if (code := await self._answered(call, request)) != "OK":
                                call.cancel()
                                call = None
                                await asyncio.sleep(INTERVAL)
                if code == "OK":
                    self._note_ok(started, ids)
                else:
                    self._codes[code] += 1
            if call is not None:
                call.cancel()

    @staticmethod
    async def _answered(call: BatchCall, request: BatchSendRequest) -> str:
        """Send a batch and read its answer; returns the code with which the stream ended instead, or OK."""
        try:
            await call.write(request)
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except asyncio.InvalidStateError:  # it had ended before
            return (await call.code()).name
        return (await call.code()).name if answer is grpc.aio.EOF else "OK"

    async def health(self) -> None:
        """Watch readiness, and ask for liveness as an orchestrator does."""
        watching = asyncio.create_task(self._watch(""))
        missed = 0
        async for _ in self._paced(PROBE_INTERVAL):
            started = time.perf_counter()
            try:
                async with grpc.aio.insecure_channel(self._address, options=OPTIONS) as channel:
                    check = channel.unary_unary(
                        "/grpc.health.v1.Health/Check",
                        health_pb2.HealthCheckRequest.SerializeToString,
                        health_pb2.HealthCheckResponse.FromString,
                    )
                    answer = await check(health_pb2.HealthCheckRequest(service="liveness"), timeout=PROBE_TIMEOUT)
                code = "OK" if answer.status == health_pb2.HealthCheckResponse.SERVING else "NOT_SERVING"
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            if code == "OK":
                missed = 0
                self._note_ok(started, [])
            else:
                missed += 1
                self._codes[code] += 1
                self.seen.missed_in_a_row = max(self.seen.missed_in_a_row, missed)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    async def _watch(self, name: str) -> None:
        async with grpc.aio.insecure_channel(self._address, options=OPTIONS) as channel:
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for answer in watch(health_pb2.HealthCheckRequest(service=name), wait_for_ready=True):
                        self.seen.changes.append((time.time(), name, int(answer.status)))
                await asyncio.sleep(PROBE_INTERVAL)

    async def _paced(self, interval: float) -> AsyncIterator[int]:
        """Count, at a steady pace, until stopped."""
        due = time.monotonic()
        number = 0
        while not self.stopped.is_set():
            yield number
            number += 1
            due = max(due + interval, time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), max(0.0, due - time.monotonic()))

    def _note_ok(self, started: float, message_ids: list[str]) -> None:
        self._codes["OK"] += 1
        self.seen.milliseconds.append(round((time.perf_counter() - started) * 1000, 2))
        self.seen.accepted += message_ids

    async def run(self, kind: str) -> Seen:
        """Work until standard input ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

        async def stop() -> None:
            await reader.read()
            self.stopped.set()

        stopping = asyncio.create_task(stop())
        await {"track": self.track, "batch": self.batch, "health": self.health}[kind]()
        await stopping
        self.seen.codes = dict(self._codes)
        return self.seen


class Honest:
    """A caller's process, as a test sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, kind: str, address: str, name: str, token: str | None = None) -> "Honest":
        """Start it; it has made a connection by nothing yet."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.acceptance.honest_callers", kind, address, name),
            *(() if token is None else (token,)),
            cwd=PROJECT,
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=64 * 1024 * 1024,
        )
        return cls(process)

    async def stop(self) -> Seen:
        """Have it stop, and tell what it saw."""
        out, _ = await self._process.communicate(b"")  # which ends its standard input
        return Seen(**json.loads(out))

    async def kill(self) -> None:
        """End it if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate(b"")


def main(kind: str, address: str, name: str, token: str | None = None) -> None:
    """Run one caller."""

    async def run() -> None:
        print(json.dumps(asdict(await Caller(address, name, token).run(kind))))  # noqa: T201  its answer to the test

    asyncio.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
