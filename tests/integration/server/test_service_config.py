"""The service config for callers: what it says, and that a restart of the server does not fail a caller that has it."""

import asyncio
import importlib.util
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest

from pointillist_destination.v1 import (
    dead_letter_service_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
)
from service.server.grpc_server import MAX_MESSAGE_SIZE
from tests.support.events import event, track
from tests.support.paths import PROJECT
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.waiting import until

SERVICE_CONFIG = PROJECT / "deploy" / "service-config.json"
CALLERS = 8
BEFORE = 100  # calls that are answered before the server is told to end
AFTER = 200  # calls that are answered after it is back
BATCHES = 60
BATCH_EVENTS = 20


def _load_example() -> ModuleType:
    path = PROJECT / "docs" / "examples" / "python" / "send_events.py"
    spec = importlib.util.spec_from_file_location("send_events_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _load_example()


@pytest.fixture(scope="module")
def methods() -> dict[str, dict[str, Any]]:
    """Each method that is named, or each service that is named as a whole, with its config."""
    config = json.loads(SERVICE_CONFIG.read_text())
    return {"/".join(name.values()): method for method in config["methodConfig"] for name in method["name"]}


def test_every_method_of_the_contract_has_a_config(methods: dict[str, dict[str, Any]]) -> None:
    files = (event_service_pb2.DESCRIPTOR, dead_letter_service_pb2.DESCRIPTOR)
    services = [service for file in files for service in file.services_by_name.values()]

    bare = [
        f"{service.full_name}/{method.name}"
        for service in services
        for method in service.methods
        if not {service.full_name, f"{service.full_name}/{method.name}"} & methods.keys()
    ]

    assert bare == []


def test_only_unavailable_is_tried_again_and_streams_are_left_to_their_callers(
    methods: dict[str, dict[str, Any]],
) -> None:
    retried = {
        name: config["retryPolicy"]["retryableStatusCodes"]
        for name, config in methods.items()
        if "retryPolicy" in config
    }

    assert retried == {
        "pointillist_destination.v1.EventService/Identify": ["UNAVAILABLE"],
        "pointillist_destination.v1.EventService/Track": ["UNAVAILABLE"],
        "pointillist_destination.v1.DeadLetterService": ["UNAVAILABLE"],
    }


def test_a_request_may_be_as_large_as_the_server_takes_and_no_larger(methods: dict[str, dict[str, Any]]) -> None:
    assert {config["maxRequestMessageBytes"] for config in methods.values()} == {MAX_MESSAGE_SIZE}


class _HeldOpen:
    """A stub whose first stream sends the first half of its batches, and the rest only once it is let."""

    def __init__(self, stub: event_service_pb2_grpc.EventServiceStub) -> None:
        self._stub = stub
        self._is_first = True
        self.let = threading.Event()

    def BatchSend(self, requests: Iterator[event_service_pb2.BatchSendRequest]) -> Any:  # noqa: N802  the stub's name
        held = self._hold(requests) if self._is_first else requests
        self._is_first = False
        return self._stub.BatchSend(held)

    def _hold(
        self, requests: Iterator[event_service_pb2.BatchSendRequest]
    ) -> Iterator[event_service_pb2.BatchSendRequest]:
        yield from itertools.islice(requests, BATCHES // 2)
        self.let.wait()
        yield from requests


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago, so that a server can come back on it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number: int = found.getsockname()[1]
        return number


async def test_no_unary_call_fails_while_the_server_is_restarted(tmp_path: Path, port: int) -> None:
    # given
    answered: list[str] = []
    enough = asyncio.Event()

    async def call_on(stub: "event_service_pb2_grpc.EventServiceAsyncStub", caller: int) -> None:
        number = 0
        while not enough.is_set():
            request = event_service_pb2.TrackRequest(track=track(1, message_id=f"{caller}-{number}"))
            answered.append((await stub.Track(request)).receipt.message_id)
            number += 1

    address = f"127.0.0.1:{port}"
    async with (
        running_sandbox() as sandbox,
        grpc.aio.insecure_channel(address, options=[("grpc.service_config", SERVICE_CONFIG.read_text())]) as channel,
    ):
        stub: event_service_pb2_grpc.EventServiceAsyncStub = event_service_pb2_grpc.EventServiceStub(channel)
        async with running_server(sandbox, tmp_path, grpc_listen=address) as server:
            callers = [asyncio.create_task(call_on(stub, caller)) for caller in range(CALLERS)]
            await until(lambda: len(answered) >= BEFORE)

            # when
            await server.stop()
        before = len(answered)
        async with running_server(sandbox, tmp_path, grpc_listen=address):
            await until(lambda: len(answered) >= before + AFTER or any(caller.done() for caller in callers))
            enough.set()
            await asyncio.gather(*callers)

            # then
            assert len(set(answered)) == len(answered)
            assert await until_taken(sandbox, len(answered)) == set(answered)


async def test_a_stream_that_resumes_from_its_first_unanswered_batch_loses_nothing(tmp_path: Path, port: int) -> None:
    # given
    batches = [
        event_service_pb2.BatchSendRequest(
            sequence=sequence,
            events=[event(message_id=f"{sequence}-{index}") for index in range(BATCH_EVENTS)],
        )
        for sequence in range(BATCHES)
    ]
    answers: list[event_service_pb2.BatchSendResponse] = []
    address = f"127.0.0.1:{port}"
    channel = example.connect(address, SERVICE_CONFIG)
    held = _HeldOpen(event_service_pb2_grpc.EventServiceStub(channel))

    def send() -> None:
        for answer in example.send_batches(held, batches):
            answers.append(answer)  # noqa: PERF402  each is seen as it comes

    with channel, ThreadPoolExecutor(1) as thread:
        async with running_sandbox() as sandbox:
            async with running_server(sandbox, tmp_path, grpc_listen=address) as server:
                sending = asyncio.get_running_loop().run_in_executor(thread, send)
                await until(lambda: answers)

                # when
                await server.stop()
                held.let.set()
            async with running_server(sandbox, tmp_path, grpc_listen=address):
                await sending

                # then
                assert [answer.sequence for answer in answers] == list(range(BATCHES))
                assert sum(answer.accepted + answer.duplicates for answer in answers) == BATCHES * BATCH_EVENTS
                assert len(await until_taken(sandbox, BATCHES * BATCH_EVENTS)) == BATCHES * BATCH_EVENTS
