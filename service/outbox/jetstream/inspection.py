"""Inspects the streams of an outbox on JetStream, read-only, also while servers use them."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from service.errors import OutboxUnavailableError, OutboxUnusableError
from service.outbox.base import DeadLetterFilter
from service.outbox.jetstream.connection import INBOX, Connection, NatsAccess
from service.outbox.jetstream.dead_letters import DeadLetterStream
from service.outbox.jetstream.publisher import Publisher
from service.outbox.jetstream.state import StreamState, read_state
from service.outbox.jetstream.streams import (
    CONSUMER,
    Plan,
    consumer_differences,
    stream_differences,
)

PATIENCE = 3.0  # seconds to wait for a connection to NATS
MAX_REASONS = 5
MAX_LETTERS = 1000  # dead letters whose reasons are counted


@dataclass(frozen=True, slots=True)
class Inspection:
    """The state of the streams."""

    problem: str | None
    """The reason why nothing can be inspected; None if the other fields are valid."""
    account: dict[str, Any]
    """JetStream's description of the account: `storage`, `limits` and more."""
    missing: tuple[str, ...] = ()
    """Streams, and the consumer, that do not exist yet."""
    differences: tuple[str, ...] = ()
    """The reasons why existing ones cannot be used, one sentence each."""
    events: int = 0
    bytes: int = 0
    oldest_at: int | None = None
    """Milliseconds since the epoch: when the oldest pending event was accepted."""
    bounds: tuple[int, int] = (-1, -1)
    """Maximum numbers of pending events and bytes; -1 for no bound."""
    replicas: int = 1
    in_work: int = 0
    """Events that are leased or await redelivery."""
    dead_letters: int = 0
    reasons: tuple[tuple[str, int], ...] = ()
    """The commonest reasons of the first thousand dead letters, with their counts."""


async def inspect_streams(access: NatsAccess, plan: Plan) -> Inspection:
    """Connect to NATS and inspect the account, the streams and the consumer."""
    try:
        connection = Connection(access, lost=lambda: None)
    except OutboxUnusableError as error:
        return Inspection(str(error), {})
    running = asyncio.create_task(connection.run())
    try:
        async with asyncio.timeout(PATIENCE):
            await connection.up()
        return await _inspect(connection, plan)
    except TimeoutError:
        return Inspection(connection.problem, {})
    except OutboxUnavailableError as error:
        return Inspection(str(error), {})
    finally:
        while not running.done():  # before Python 3.12 asyncio.wait_for, which the client uses, may lose a cancellation
            running.cancel()
            await asyncio.wait({running}, timeout=0.2)


async def _inspect(connection: Connection, plan: Plan) -> Inspection:
    account = await connection.call_api("INFO")
    methods = {
        plan.events_stream: f"STREAM.INFO.{plan.events_stream}",
        plan.letters_stream: f"STREAM.INFO.{plan.letters_stream}",
        f"consumer {CONSUMER}": f"CONSUMER.INFO.{plan.events_stream}.{CONSUMER}",
    }
    found = {name: await connection.find(method) for name, method in methods.items()}
    events, letters, consumer = found.values()
    differences: list[str] = []
    for name, info, wanted in (
        (plan.events_stream, events, plan.events_config()),
        (plan.letters_stream, letters, plan.letters_config()),
    ):
        if info is not None:
            differences += [f"{name}: {text}" for text in stream_differences(info["config"], wanted)]
    if consumer is not None:
        differences += [f"consumer {CONSUMER}: {text}" for text in consumer_differences(consumer["config"])]
    missing = tuple(name for name, info in found.items() if info is None)
    if events is None or letters is None:
        return Inspection(None, account, missing, tuple(differences))
    state = await read_state(connection, plan, StreamState())
    return Inspection(
        None,
        account,
        missing,
        tuple(differences),
        events=state.events,
        bytes=state.bytes,
        oldest_at=state.oldest_at,
        bounds=(events["config"]["max_msgs"], events["config"]["max_bytes"]),
        replicas=events["config"]["num_replicas"],
        in_work=0 if consumer is None else consumer["num_ack_pending"],
        dead_letters=state.dead_letters,
        reasons=await _reasons(connection, plan) if state.dead_letters else (),
    )


async def _reasons(connection: Connection, plan: Plan) -> tuple[tuple[str, int], ...]:
    letters = DeadLetterStream(connection, Publisher(connection), plan)
    await letters.puller.start(f"{INBOX}inspection")
    found = await letters.find(DeadLetterFilter(), after=0, limit=MAX_LETTERS)
    return tuple(Counter(letter.refusal.reason for letter in found).most_common(MAX_REASONS))
