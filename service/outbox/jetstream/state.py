"""The counts of the streams of an outbox on JetStream."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.outbox.jetstream.connection import Connection
from service.outbox.jetstream.headers import ACCEPTED_AT, parse_headers, whole
from service.outbox.jetstream.streams import Plan


@dataclass(slots=True)
class StreamState:
    """Counts of pending events and dead letters; between two reads, this process adds its own changes."""

    events: int = 0
    bytes: int = 0
    """With headers and the overhead of JetStream."""
    oldest: int = 0
    """The sequence number of the first event in the stream."""
    oldest_at: int | None = None
    """Milliseconds since the epoch: when it was accepted."""
    dead_letters: int = 0
    created_at: str = ""
    """The creation time of the stream, in JetStream's format; empty while unknown."""


async def read_state(connection: Connection, plan: Plan, before: StreamState) -> StreamState:
    """Read the state of both streams.

    Args:
        connection: to NATS.
        plan: names the streams.
        before: the previous state; values that cannot have changed are taken from it.

    Raises:
        OutboxUnavailableError: JetStream does not answer, or a stream does not exist.
    """
    info = await connection.call_api(f"STREAM.INFO.{plan.events_stream}")
    events = info["state"]
    letters = (await connection.call_api(f"STREAM.INFO.{plan.letters_stream}"))["state"]
    state = StreamState(
        events["messages"], events["bytes"], events["first_seq"], None, letters["messages"], info["created"]
    )
    if state.events:
        is_known = (state.created_at, state.oldest) == (
            before.created_at,
            before.oldest,
        ) and before.oldest_at is not None
        state.oldest_at = before.oldest_at if is_known else await _accepted_at(connection, plan, events)
    return state


async def _accepted_at(connection: Connection, plan: Plan, state: dict[str, Any]) -> int | None:
    """Return the acceptance time of the first event of the stream; None if it left meanwhile."""
    first = await connection.find_message(plan.events_stream, {"seq": state["first_seq"]})
    if first is None:
        return None
    return whole(
        parse_headers(first[0]), ACCEPTED_AT, round(datetime.fromisoformat(state["first_ts"]).timestamp() * 1000)
    )
