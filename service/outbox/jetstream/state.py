"""What the streams of an outbox on JetStream hold, as far as JetStream tells."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.errors import JetStreamError
from service.outbox.jetstream.connection import Connection
from service.outbox.jetstream.headers import ACCEPTED_AT, parse_headers, whole
from service.outbox.jetstream.streams import NOT_FOUND, Plan


@dataclass(slots=True)
class StreamState:
    """What waits and what was given up; between two looks, our own doings are added."""

    events: int = 0
    bytes: int = 0
    """With headers and what JetStream itself adds."""
    oldest: int = 0
    """The first event's place in the stream."""
    oldest_at: int | None = None
    """Milliseconds since the epoch: when it was accepted."""
    dead_letters: int = 0
    made_at: str = ""
    """When the stream was made, in JetStream's words; empty where that is not known yet."""


async def read_state(connection: Connection, plan: Plan, before: StreamState) -> StreamState:
    """Look at both streams.

    Args:
        connection: to NATS.
        plan: which streams.
        before: what was seen the last time; what cannot have changed is taken from it.

    Raises:
        OutboxUnavailableError: JetStream cannot be asked, or a stream is gone.
    """
    info = await connection.ask(f"STREAM.INFO.{plan.events_stream}")
    events = info["state"]
    letters = (await connection.ask(f"STREAM.INFO.{plan.letters_stream}"))["state"]
    state = StreamState(
        events["messages"], events["bytes"], events["first_seq"], None, letters["messages"], info["created"]
    )
    if state.events:
        is_known = (state.made_at, state.oldest) == (before.made_at, before.oldest) and before.oldest_at is not None
        state.oldest_at = before.oldest_at if is_known else await _accepted_at(connection, plan, events)
    return state


async def _accepted_at(connection: Connection, plan: Plan, state: dict[str, Any]) -> int | None:
    """When the first event of the stream was accepted; None where it left meanwhile."""
    try:
        answer = await connection.ask(f"STREAM.MSG.GET.{plan.events_stream}", {"seq": state["first_seq"]})
    except JetStreamError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    headers = parse_headers(base64.b64decode(answer["message"].get("hdrs", "")))
    return whole(headers, ACCEPTED_AT, round(datetime.fromisoformat(state["first_ts"]).timestamp() * 1000))
