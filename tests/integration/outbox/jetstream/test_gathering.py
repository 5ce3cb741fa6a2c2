"""Many callers who put one event each, at a time: what they put is gathered, and each hears of its own."""

import asyncio

from service.clock import SystemClock
from service.outbox.jetstream.streams import Plan
from tests.support.events import entry
from tests.support.nats import NatsServer
from tests.support.outboxes import opened_on_nats, take


async def test_many_callers_at_a_time_each_hear_whether_their_own_event_is_new(
    nats_server: NatsServer, prefix: str
) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix), SystemClock()) as outbox:
        # given an event that is there
        await outbox.put([entry(7)])

        # when many callers put one each, that one among them
        heard = await asyncio.gather(*(outbox.put([entry(number)]) for number in range(100)))

        # then its caller alone hears that it is a duplicate, and all others are stored once
        assert [number for number, [is_new] in enumerate(heard) if not is_new] == [7]
        assert len({stored.message_id for stored in await take(outbox, 100)}) == 100
        assert outbox.stats().events == 100
