"""Callers that send rubbish, too much, or nothing at all, while honest ones go on.

One server process bears every attack in turn; then it is asked what each one was answered, how the honest callers fared
meanwhile, and how much memory is left in use.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value

from pointillist_destination.v1 import event_service_pb2
from service.sandbox.server import Sandbox
from service.server.dead_letter_service import SERVICE_NAME as DEAD_LETTER_SERVICE
from service.server.event_service import SERVICE_NAME as EVENT_SERVICE
from tests.support.events import event, identify, track
from tests.support.sandboxes import TOKEN
from tests.support.server_processes import CALLER_GONE, ServerProcess, settings_for
from tests.support.sizes import sized
from tests.support.waiting import DEADLINE

UNARY = [f"/{EVENT_SERVICE}/{name}" for name in ("Track", "Identify")] + [
    f"/{DEAD_LETTER_SERVICE}/{name}" for name in ("List", "Get", "Replay", "Delete")
]
TRACK = UNARY[0]
BATCH_SEND = f"/{EVENT_SERVICE}/BatchSend"
REQUESTS = sized(1_000, 10_000)  # malformed ones, of all kinds
FRAMES = 5  # malformed requests in one stream
AT_ONCE = 50  # attacks under way at once
IDLE_STREAMS = sized(200, 1_000)
ABANDONED = sized(100, 500)  # calls whose deadline passes at once
HUGE = sized(2, 5)  # events too large for a request, as many in streams, and twice as many too large for an event
HALF_CLOSED = sized(20, 100)  # streams of each kind
CONNECTIONS = 4  # over which idle streams are spread
NOTHING_KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Has the C library give freed memory back at once, so that what a process has is what it uses."""
MAX_ROUNDS = 3  # of all attacks; memory that grew in each of them is not given back
MAX_MEMORY = 32 * 1024  # KiB above what was in use before
HONEST_INTERVAL = 0.01  # seconds between two calls of an honest caller

Code: TypeAlias = grpc.StatusCode
Codes: TypeAlias = "Counter[grpc.StatusCode]"
ANSWERED = {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND}


@dataclass
class Evidence:
    """What the attacks brought to light."""

    codes: dict[str, Codes] = field(default_factory=dict)
    """How the calls of each attack ended."""
    honest: Codes = field(default_factory=Counter)
    answers: dict[str, int] = field(default_factory=dict)
    """How Pointillist answered what was accepted."""
    memory: tuple[int, int] = (0, 0)
    """KiB in use before and after."""
    log: list[str] = field(default_factory=list)


# -- one hostile call


async def unary(channel: grpc.aio.Channel, method: str, request: bytes, seconds: float = DEADLINE) -> grpc.StatusCode:
    """Send bytes as one request."""
    method_: Any = channel.unary_unary(method)
    call = method_(request, timeout=seconds)
    code: grpc.StatusCode = await call.code()
    return code


async def stream(target: str, frames: Sequence[bytes]) -> grpc.StatusCode:
    """Send bytes as the requests of one stream, and read what is answered until it ends.

    It is grpc's client with threads, because the one with asyncio ends a call as INTERNAL, of its own accord, when the
    server has ended it while something was being written.
    """

    def send() -> grpc.StatusCode:
        with grpc.insecure_channel(target) as channel:
            method: Any = channel.stream_stream(BATCH_SEND)
            call = method(iter(frames), timeout=DEADLINE)
            with contextlib.suppress(grpc.RpcError):  # its code tells
                deque(call, maxlen=0)
            code: grpc.StatusCode = call.code()
            return code

    return await asyncio.to_thread(send)


async def all_of(calls: Sequence[Callable[[], Awaitable[grpc.StatusCode]]]) -> Codes:
    """Make calls, some at once, and count how they end."""
    codes: Codes = Counter()
    waiting = iter(calls)

    async def some() -> None:
        for call in waiting:
            codes[await call()] += 1

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return codes


# -- what is sent


def rubbish(random: Random) -> bytes:
    """Random bytes, short ones more often than long ones."""
    return random.randbytes(round(2 ** random.uniform(0, 12)))


def mutated(random: Random, request: bytes) -> bytes:
    """A good request with a few things done to it."""
    changed = bytearray(request)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << random.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = random.randbytes(random.randint(1, 8))
            case 3:
                changed[at:at] = changed[: random.randrange(len(changed) + 1)]
            case _:
                del changed[at : at + random.randint(1, 8)]
    return bytes(changed)


def good_requests() -> list[bytes]:
    """Good requests of every kind, to be spoilt."""
    options = event_service_pb2.SendOptions(include_record=True)
    context = {"campaign": {"name": "Spring"}, "location": {"latitude": 1.5}, "traits": {"a": [1, {"b": None}]}}
    return [
        event_service_pb2.TrackRequest(track=track(1, context=context), options=options).SerializeToString(),
        event_service_pb2.IdentifyRequest(identify=identify(1), options=options).SerializeToString(),
        event_service_pb2.TrackRequest(track=track(2, message_id="")).SerializeToString(),
    ]


def batch(events: int) -> bytes:
    """A good batch of so many events."""
    request = event_service_pb2.BatchSendRequest(sequence=1, events=[event(number) for number in range(events)])
    return request.SerializeToString()


def deep(levels: int) -> bytes:
    """A track whose properties are nested so deep."""
    value = Value(number_value=1).SerializeToString()
    for _ in range(levels):
        inner = b"\x0a" + varint(len(value)) + value  # ListValue.values
        value = b"\x32" + varint(len(inner)) + inner  # Value.list_value
    entry = b"\x0a\x01k\x12" + varint(len(value)) + value
    properties = b"\x0a" + varint(len(entry)) + entry
    body = b"\x0a\x01u\x22\x01e\x2a" + varint(len(properties)) + properties
    return b"\x0a" + varint(len(body)) + body


def varint(number: int) -> bytes:
    """A number as protobuf writes lengths."""
    written = b""
    while number > 0x7F:
        written += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return written + bytes((number,))


def huge(keys: int) -> bytes:
    """A track with so many properties."""
    properties = Struct(fields={f"key-{number}": Value(string_value="x" * 20) for number in range(keys)})
    return event_service_pb2.TrackRequest(track=track(1, properties=properties)).SerializeToString()


# -- the attacks


async def random_bytes(channel: grpc.aio.Channel, _: str) -> Codes:
    """Rubbish as requests of every unary method."""
    random = Random(1)
    count = REQUESTS * 3 // 10
    return await all_of([partial(unary, channel, random.choice(UNARY), rubbish(random)) for _ in range(count)])


async def spoilt_requests(channel: grpc.aio.Channel, _: str) -> Codes:
    """Good requests with a few things done to them, to every unary method."""
    random, good, count = Random(2), good_requests(), REQUESTS * 4 // 10
    spoilt = [mutated(random, random.choice(good)) for _ in range(count)]
    return await all_of([partial(unary, channel, random.choice(UNARY), request) for request in spoilt])


async def spoilt_streams(_: grpc.aio.Channel, address: str) -> Codes:
    """Streams of a few requests each, all of them rubbish or spoilt."""
    random, good = Random(3), batch(3)

    def frame() -> bytes:
        return rubbish(random) if random.random() < 0.3 else mutated(random, good)

    count = REQUESTS * 3 // 10 // FRAMES
    return await all_of([partial(stream, address, [frame() for _frame in range(FRAMES)]) for _stream in range(count)])


async def huge_maps(channel: grpc.aio.Channel, address: str) -> Codes:
    """Events with more properties than an event, or a request, may have."""
    large, too_large = huge(50_000), huge(150_000)
    return await all_of(
        [partial(unary, channel, TRACK, large)] * 2 * HUGE
        + [partial(unary, channel, TRACK, too_large)] * HUGE
        + [partial(stream, address, [batch(1), too_large])] * HUGE
    )


async def deep_nesting(channel: grpc.aio.Channel, _: str) -> Codes:
    """Events nested deeper than an event may be, and deeper than protobuf reads."""
    levels = (33, 40, 49, 50, 99, 100, 101, 1_000, 20_000)
    return await all_of([partial(unary, channel, TRACK, deep(count)) for count in levels])


async def half_closed_streams(channel: grpc.aio.Channel, address: str) -> Codes:
    """Streams that end at once, and streams whose answers nobody reads."""
    request = batch(20)

    async def never_reads() -> grpc.StatusCode:
        call: Any = channel.stream_stream(BATCH_SEND)(timeout=DEADLINE)
        for _ in range(3):
            await call.write(request)
        await call.done_writing()
        call.cancel()
        code: grpc.StatusCode = await call.code()
        return code

    return await all_of([partial(stream, address, []), partial(stream, address, [request]), never_reads] * HALF_CLOSED)


async def abandoned_deadlines(channel: grpc.aio.Channel, _: str) -> Codes:
    """Calls that ask to wait for the delivery, and do not wait."""
    request = event_service_pb2.TrackRequest(
        track=track(1, message_id=""), options=event_service_pb2.SendOptions(wait_for_delivery=True)
    ).SerializeToString()
    random = Random(4)
    return await all_of(
        [partial(unary, channel, TRACK, request, random.uniform(0.0001, 0.01)) for _ in range(ABANDONED)]
    )


async def idle_streams(_: grpc.aio.Channel, address: str) -> Codes:
    """Many streams that are open and say nothing."""
    async with contextlib.AsyncExitStack() as stack:
        options = (("grpc.use_local_subchannel_pool", 1),)  # else all of them would share one connection
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(CONNECTIONS)
        ]
        calls: list[Any] = [
            channels[number % CONNECTIONS].stream_stream(BATCH_SEND)() for number in range(IDLE_STREAMS)
        ]
        for call in calls:  # an answer shows that the stream is open, and that the server waits for more
            await call.write(batch(0))
            await call.read()
        for call in calls:
            call.cancel()
        return Counter([await call.code() for call in calls])


async def other_protocols(_channel: grpc.aio.Channel, address: str) -> Codes:
    """Speak to the port what it does not: HTTP/1.1, rubbish, and rubbish after a good start."""
    host, _, port = address.rpartition(":")
    random = Random(5)
    http = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for sent in [http] * 10 + [rubbish(random) for _ in range(50)] + [preface + rubbish(random) for _ in range(50)]:
        _, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(OSError):  # the server may have closed it already
            writer.write(sent)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    return Counter()


ATTACKS: dict[str, tuple[Callable[[grpc.aio.Channel, str], Awaitable[Codes]], set[grpc.StatusCode]]] = {
    "random bytes": (random_bytes, ANSWERED),
    "spoilt requests": (spoilt_requests, ANSWERED),
    "spoilt streams": (spoilt_streams, ANSWERED),
    "huge maps": (huge_maps, {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED}),
    "deep nesting": (deep_nesting, {Code.INVALID_ARGUMENT}),
    "half-closed streams": (half_closed_streams, {Code.OK, Code.CANCELLED}),
    "abandoned deadlines": (abandoned_deadlines, {Code.OK, Code.DEADLINE_EXCEEDED, Code.CANCELLED}),
    "idle streams": (idle_streams, {Code.CANCELLED}),
    "other protocols": (other_protocols, set()),
}
"""Each with the codes in which its calls may end; CANCELLED and DEADLINE_EXCEEDED are the callers' own."""


# -- all of it


@contextlib.asynccontextmanager
async def honest_callers(address: str, evidence: Evidence) -> AsyncIterator[None]:
    """Have two honest callers send one event after another meanwhile."""
    ended = asyncio.Event()

    async def send(caller: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            number = 0
            while not ended.is_set():
                number += 1
                request = event_service_pb2.TrackRequest(track=track(1, message_id=f"honest-{caller}-{number}"))
                evidence.honest[await unary(channel, TRACK, request.SerializeToString())] += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), HONEST_INTERVAL)

    async with asyncio.TaskGroup() as callers:
        for caller in range(2):
            callers.create_task(send(caller))
        try:
            yield
        finally:
            ended.set()


async def memory_once_given_back(server: ServerProcess, before: int) -> int:
    """What a server has in use some time after an attack, in KiB."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while server.memory() - before > MAX_MEMORY:  # noqa: ASYNC110  the kernel sets no event
                await asyncio.sleep(0.1)
    return server.memory()


async def be_attacked(folder: Path) -> Evidence:
    """Run every attack against one server."""
    evidence = Evidence()
    sandbox = Sandbox(api_token=TOKEN, keep=10)
    await sandbox.start("127.0.0.1", 0)
    server = await ServerProcess.start(settings_for(folder / "outbox.db", sandbox), NOTHING_KEPT)
    try:
        server.log = deque(server.log)  # all of it
        async with grpc.aio.insecure_channel(server.address) as channel:
            for name in ("huge maps", "half-closed streams", "idle streams"):  # a leak grows each time, a pool once
                await ATTACKS[name][0](channel, server.address)
            for _ in range(MAX_ROUNDS):
                before = server.memory()
                async with honest_callers(server.address, evidence):
                    for name, (attack, _) in ATTACKS.items():
                        evidence.codes[name] = await attack(channel, server.address)
                evidence.memory = (before, await memory_once_given_back(server, before))
                if evidence.memory[1] - before < MAX_MEMORY:
                    break
        await server.stop()
        evidence.log, evidence.answers = list(server.log), dict(sandbox.answers)
    finally:
        await server.kill()
        await sandbox.stop()
    return evidence


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What all the attacks brought to light."""
    return asyncio.run(be_attacked(tmp_path_factory.mktemp("hostile")))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_answered_with_nothing_but_the_codes_that_are_promised(evidence: Evidence, attack: str) -> None:
    assert evidence.codes[attack].keys() <= ATTACKS[attack][1]


@pytest.mark.parametrize("attack", ["random bytes", "spoilt requests", "spoilt streams"])
def test_most_of_the_rubbish_is_refused(evidence: Evidence, attack: str) -> None:
    assert evidence.codes[attack][Code.INVALID_ARGUMENT] > evidence.codes[attack].total() / 10


def test_honest_callers_are_served_all_the_while(evidence: Evidence) -> None:
    assert evidence.honest.keys() == {Code.OK}
    assert evidence.honest.total() > sized(20, 100)


def test_nothing_of_an_attack_is_unexpected(evidence: Evidence) -> None:
    ours = [line for line in evidence.log if CALLER_GONE not in line]

    assert not [line for line in ours if '"level":"error"' in line or "Traceback" in line]


def test_whatever_is_accepted_from_a_hostile_caller_makes_a_record_that_pointillist_takes(evidence: Evidence) -> None:
    assert evidence.answers.keys() == {"200"}


def test_memory_is_given_back_once_the_attackers_are_gone(evidence: Evidence) -> None:
    before, after = evidence.memory

    assert after - before < MAX_MEMORY
