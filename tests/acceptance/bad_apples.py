"""Events that fail beside events that pass, on the real service: `python -m tests.acceptance.bad_apples [--workers 2]`.

Prints, per scenario, the good events that were delivered of those that were sent, and how late the last one was. With
`--kills 200` classes of events fail, slow down and recover at random while the server is killed again and again.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom

import grpc

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.pointillist.answer import Answer, Failure
from service.sandbox.server import Sandbox
from tests.support.events import event, track
from tests.support.relays import over_http
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.waiting import INTERVAL

LATE = 60.0  # seconds from the end of sending until a good event must be delivered
CALLS = 16  # in flight


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Attributes:
        name: as the table has it.
        rate: events per second.
        seconds: for which they are sent.
        answer: of a bad event.
        is_bad: says of the nth event whether it is bad.
        burst: bad events that are sent together.
        burst_at: seconds after the start.
        bad_seconds: until the answer to a bad event.
        is_slow: bad events pass, slowly.
    """

    name: str
    rate: float
    seconds: float
    answer: Answer
    is_bad: Callable[[int], bool] = lambda _: False
    burst: int = 0
    burst_at: float = 0.0
    bad_seconds: float = 0.0


SCENARIOS = [
    Scenario("50/s, then 20 that get 403", 50, 20, Answer(403), burst=20, burst_at=5),
    Scenario("50/s, then 40 that get 500", 50, 20, Answer(500), burst=40, burst_at=5),
    Scenario("60 that get 500 ahead of 20/s", 20, 30, Answer(500), burst=60),
    Scenario("2 % of 200/s get 500", 200, 60, Answer(500), is_bad=lambda number: number % 50 == 0),
    Scenario("20 % of 400/s get 503", 400, 20, Answer(503), is_bad=lambda number: number % 5 == 0),
    Scenario("10 % take 3 s", 50, 30, Answer(200), is_bad=lambda number: number % 10 == 0, bad_seconds=3.0),
]


@dataclass
class Pointillist:
    """Answers a bad event by the scenario, and any other with 200."""

    answer: Answer
    seconds: float
    delivered: dict[str, float] = field(default_factory=dict)

    async def post(self, body: bytes, message_id: str) -> Answer:  # noqa: ARG002  the signature is Pointillist's
        """Answer one POST."""
        if message_id.startswith("bad-"):
            await asyncio.sleep(self.seconds)
            if self.answer.status != 200:
                return self.answer
        self.delivered.setdefault(message_id, asyncio.get_running_loop().time())
        return Answer(200)

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The good events of a scenario."""

    sent: int
    delivered: int
    late: float
    """Seconds from the acceptance of an event until its delivery, of the latest."""


async def run(scenario: Scenario, folder: Path, workers: int = 0) -> Outcome:
    """Run a scenario on a server of its own."""
    pointillist = Pointillist(scenario.answer, scenario.bad_seconds)
    sandbox = Sandbox(api_token=TOKEN)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(over_http(pointillist))
        settings = settings_for(folder / "outbox.db", sandbox, api_url=url, relay_workers=str(workers))
        settings["POINTILLIST_RETRY_MAX_DELAY"] = "5m"
        settings["POINTILLIST_REQUEST_TIMEOUT"] = "10s"
        server = await ServerProcess.start(settings)
        stack.push_async_callback(server.stop)
        await server.until_workers(workers)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        stub = EventServiceStub(channel)
        time = asyncio.get_running_loop().time
        accepted: dict[str, float] = {}
        places = asyncio.Semaphore(CALLS)

        async def send(number: int) -> None:
            message_id = f"{'bad' if scenario.is_bad(number) else 'ok'}-{number}"
            async with places:
                await stub.Track(TrackRequest(track=track(number, message_id=message_id)))
            accepted[message_id] = time()

        async def burst() -> None:
            await asyncio.sleep(scenario.burst_at)
            events = [event(number, message_id=f"bad-burst-{number}") for number in range(scenario.burst)]
            stream = stub.BatchSend()
            await stream.write(BatchSendRequest(sequence=1, events=events))
            await stream.done_writing()
            await stream.read()

        began = time()
        async with asyncio.TaskGroup() as tasks:
            if scenario.burst:
                bursting = tasks.create_task(burst())
                if not scenario.burst_at:
                    await bursting
            for number in range(round(scenario.rate * scenario.seconds)):
                await asyncio.sleep(began + number / scenario.rate - time())
                tasks.create_task(send(number))
        good = [
            message_id
            for message_id in accepted
            if not (message_id.startswith("bad-") and scenario.answer.status != 200)
        ]
        end = time() + LATE
        while time() < end and not all(message_id in pointillist.delivered for message_id in good):  # noqa: ASYNC110
            await asyncio.sleep(INTERVAL)
        late = max(pointillist.delivered.get(message_id, time()) - accepted[message_id] for message_id in good)
        return Outcome(len(good), sum(message_id in pointillist.delivered for message_id in good), late)


# -- classes that fail, slow down and recover while the server is killed


CLASSES = 8
MAX_LIFE = 3.0  # seconds from the start of a server to its kill
SOAK_RATE = 100  # events per second
STATES = (Answer(200), Answer(200), Answer(403), Answer(500), Answer(429), Answer(failure=Failure.RESET))


@dataclass
class Classes:
    """A Pointillist that answers each class of events in its own way."""

    random: Random
    states: dict[int, Answer] = field(default_factory=dict)
    slow: dict[int, float] = field(default_factory=dict)
    good_since: dict[int, float] = field(default_factory=dict)
    delivered: dict[str, float] = field(default_factory=dict)
    late: float = 0.0
    """Seconds from the moment at which an event could be delivered until it was, of the latest."""
    accepted: dict[str, float] = field(default_factory=dict)
    up_since: float = 0.0

    def turn(self, *, is_end: bool = False) -> None:
        """Let each class behave in another way; at the end all of them well."""
        now = asyncio.get_running_loop().time()
        for number in range(CLASSES):
            before = self.states.get(number, STATES[0])
            if is_end or number not in self.states or self.random.random() < 0.3:
                self.states[number] = STATES[0] if is_end else self.random.choice(STATES)
                self.slow[number] = 0.0 if is_end or self.random.random() < 0.8 else 1.5
            if self.states[number].status == 200 and (before.status != 200 or number not in self.good_since):
                self.good_since[number] = now
            elif self.states[number].status != 200:
                self.good_since.pop(number, None)

    async def post(self, body: bytes, message_id: str) -> Answer:  # noqa: ARG002  the signature is Pointillist's
        """Answer one POST by the class of its event."""
        number = int(message_id.split("-")[1]) % CLASSES
        answer, seconds = self.states[number], self.slow[number]
        await asyncio.sleep(seconds)
        if answer.status == 200 and message_id not in self.delivered:
            now = asyncio.get_running_loop().time()
            self.delivered[message_id] = now
            could = max(self.accepted.get(message_id, now), self.good_since.get(number, now), self.up_since)
            self.late = max(self.late, now - could)
        return answer

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Soaked:
    """The end of a soak."""

    accepted: int
    lost: int
    late: float


async def soak(kills: int, folder: Path, workers: int = 0, seed: int = 1) -> Soaked:
    """Kill a server again and again while classes of events fail and recover; then let all of them pass."""
    random = Random(seed)
    pointillist = Classes(random)
    pointillist.turn()
    time = asyncio.get_running_loop().time
    async with over_http(pointillist) as url:
        settings = settings_for(folder / "outbox.db", Sandbox(api_token=TOKEN), api_url=url, relay_workers=str(workers))
        settings["POINTILLIST_RETRY_MAX_DELAY"] = "10s"
        number = 0
        for life in range(kills + 1):
            server = await ServerProcess.start(settings)
            pointillist.up_since = time()
            async with grpc.aio.insecure_channel(
                server.address, options=(("grpc.use_local_subchannel_pool", 1),)
            ) as channel:
                stub = EventServiceStub(channel)
                end = time() + random.uniform(0.3, MAX_LIFE)
                while time() < end:
                    for _ in range(SOAK_RATE // 20):
                        message_id = f"soak-{number}"
                        await stub.Track(TrackRequest(track=track(number, message_id=message_id)))
                        pointillist.accepted[message_id] = time()
                        number += 1
                    if random.random() < 0.1:
                        pointillist.turn()
                    await asyncio.sleep(1 / 20)
            if life < kills:
                await server.kill()
        pointillist.turn(is_end=True)
        end = time() + LATE
        while time() < end and pointillist.accepted.keys() - pointillist.delivered.keys():  # noqa: ASYNC110
            await asyncio.sleep(INTERVAL)
        await server.stop()
    lost = pointillist.accepted.keys() - pointillist.delivered.keys()
    return Soaked(len(pointillist.accepted), len(lost), pointillist.late)


async def main() -> int:
    """Run every scenario, or the soak; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="run the soak, with so many kills")
    given = parser.parse_args()
    workers: int = given.workers
    failed = 0
    if given.kills:
        with tempfile.TemporaryDirectory() as folder:
            soaked = await soak(given.kills, Path(folder), workers, SystemRandom().randrange(1_000_000))
        print(f"{given.kills} kills: {soaked.accepted} accepted, {soaked.lost} lost, {soaked.late:.1f} s late")  # noqa: T201
        return soaked.lost + (soaked.late > LATE)
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = await run(scenario, Path(folder), workers)
        failed += outcome.delivered < outcome.sent
        print(f"{scenario.name}: {outcome.delivered} of {outcome.sent}, {outcome.late:.1f} s", flush=True)  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(bool(asyncio.run(main())))
