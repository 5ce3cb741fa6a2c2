"""An outbox whose NATS stands still, as on a machine that lost its power: it takes what is sent, and reads nothing."""

import asyncio
import signal
from pathlib import Path

from service.clock import SystemClock
from service.errors import OutboxUnavailableError
from service.outbox.base import Entry
from service.outbox.jetstream.outbox import JetStreamOutbox
from service.outbox.jetstream.streams import Plan
from tests.support.events import ACCEPTED_AT, entry
from tests.support.nats import NatsServer, nats_running
from tests.support.outboxes import opened_on_nats
from tests.support.waiting import DEADLINE, until

CLOCK = SystemClock()
CALLS = 8
EVENTS = 130  # of a call; of 30 kB each, they are more in all than the system's buffers hold


def put_much(outbox: JetStreamOutbox) -> list[asyncio.Future[list[bool]]]:
    """Begin to put more than can be sent to one who does not read."""
    return [
        asyncio.ensure_future(
            outbox.put([Entry(f"{call}-{number}", b"x" * 30_000, ACCEPTED_AT) for number in range(EVENTS)])
        )
        for call in range(CALLS)
    ]


def stall(server: NatsServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


def go_on(server: NatsServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGCONT)


async def test_puts_that_nats_does_not_read_are_refused_whatever_their_size(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats") as server:
        async with opened_on_nats(server.url, Plan(prefix), CLOCK) as outbox:
            stall(server)

            puts = put_much(outbox)
            async with asyncio.timeout(DEADLINE / 2):  # half of what it takes until the connection is made anew
                results = await asyncio.gather(*puts, return_exceptions=True)

            assert all(type(result) is OutboxUnavailableError for result in results)
            go_on(server)


async def test_a_connection_that_died_is_left_though_not_all_was_sent(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats") as server:
        async with opened_on_nats(server.url, Plan(prefix), CLOCK) as outbox:
            # given more to be sent than is read
            stall(server)
            puts = put_much(outbox)
            client = outbox._connection._client
            assert client is not None
            await until(lambda: client.pending_data_size > 0)

            # when the silence was noticed
            await outbox._connection.reconnect()

            # then
            await until(lambda: not outbox.is_connected)
            results = await asyncio.gather(*puts, return_exceptions=True)
            assert all(type(result) is OutboxUnavailableError for result in results)
            go_on(server)
            await until(lambda: outbox.full() is None)
            assert await outbox.put([entry(1)]) == [True]
