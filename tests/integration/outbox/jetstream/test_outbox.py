"""The outbox on JetStream: what it writes there, its bounds, replicas that share it, and a server that goes away."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import orjson
import pytest
from nats.aio.client import Client

from service.clock import SystemClock
from service.config.address import NatsServers
from service.errors import OutboxClosedError, OutboxFullError, OutboxUnavailableError
from service.outbox.base import Entry, Refusal
from service.outbox.jetstream.connection import API, NatsAccess
from service.outbox.jetstream.outbox import JetStreamOutbox
from service.outbox.jetstream.streams import Plan
from tests.support.events import ACCEPTED_AT, entries, entry
from tests.support.nats import NatsServer, nats_running
from tests.support.outboxes import ALL, REFUSAL, RETRY_MAX_DELAY, bury, opened_on_nats, refusal, take
from tests.support.waiting import DEADLINE, until

CLOCK = SystemClock()


# -- what is written


async def test_put_returns_once_the_stream_has_the_event_under_its_percent_encoded_id(
    nats_server: NatsServer, prefix: str
) -> None:
    plan = Plan(prefix)
    async with opened_on_nats(nats_server.url, plan, CLOCK) as outbox:
        given = entry(1, message_id="ä 1%")._replace(traceparent="00-ab-cd-01")
        await outbox.put([given])

        client = Client()
        await client.connect(nats_server.url)
        message = await client.jetstream().get_msg(plan.events_stream, 1)
        await client.close()
        [stored] = await take(outbox, 1)

    assert message.data == given.payload
    assert message.headers is not None
    assert message.headers["Nats-Msg-Id"] == "%C3%A4%201%25"
    assert message.headers["Pointillist-Accepted-At"] == str(ACCEPTED_AT)
    assert (stored.message_id, stored.traceparent) == (given.message_id, given.traceparent)


async def test_a_message_id_is_forgotten_after_the_streams_window(nats_server: NatsServer, prefix: str) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix, duplicate_window=0.1), CLOCK) as outbox:
        await outbox.put([entry(1)])
        async with asyncio.timeout(DEADLINE):
            while await outbox.put([entry(1)]) == [False]:
                pass
        assert outbox.stats().events == 2


async def test_a_dead_letter_that_is_written_again_is_kept_once(nats_server: NatsServer, prefix: str) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as outbox:
        # given a process that ended after it wrote a dead letter, and before it gave the event up
        await outbox.put([entry(1)])
        [stored] = await take(outbox, 1)
        async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as other:
            other._leases._leases.update(outbox._leases._leases)
            other.term(stored, REFUSAL)
            await other.flush()

        # when the event is given up again
        outbox.term(stored, REFUSAL)
        await outbox.flush()

        # then
        assert len(await outbox.dead_letters.list(ALL, after=0, limit=10)) == 1
        assert outbox.stats().events == 0


async def test_a_refusal_in_any_words_comes_back_as_it_was(nats_server: NatsServer, prefix: str) -> None:
    refusal = Refusal("400", 400, 'line\r\nNats-Msg-Id: forged\n "ünïcode" 100 % \x00 ')
    async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as outbox:
        await bury(outbox, [entry(1, message_id="m\r\nX: y")], refusal)
        [letter] = await outbox.dead_letters.list(ALL, after=0, limit=10)
    assert (letter.refusal, letter.message_id) == (refusal, "m\r\nX: y")


async def test_more_dead_letters_than_are_read_at_once_are_all_found(nats_server: NatsServer, prefix: str) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as outbox:
        await bury(outbox, entries(450))
        letters = await outbox.dead_letters.list(ALL, after=0, limit=1000)
        assert [letter.message_id for letter in letters] == [one.message_id for one in entries(450)]
        page = await outbox.dead_letters.list(ALL, after=letters[199].id, limit=210)
        assert page == letters[200:410]


# -- bounds


async def test_an_event_that_somebody_else_published_is_relayed_whatever_its_headers_say(
    nats_server: NatsServer, prefix: str
) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as outbox:
        given = entry(1)
        client = Client()
        await client.connect(nats_server.url)
        headers = {"Nats-Msg-Id": "m-1", "Pointillist-Accepted-At": "soon", "Pointillist-Queued-At": "1e9"}
        await client.jetstream().publish(Plan(prefix).events_subject, given.payload, headers=headers)
        await client.close()

        [stored] = await take(outbox, 1)
        assert (stored.message_id, stored.payload) == ("m-1", given.payload)
        assert abs(stored.accepted_at / 1000 - CLOCK.wall()) < 3600
        await outbox.flush()
        assert outbox.stats().oldest_at is not None


async def test_a_lot_of_dead_letters_is_whole_whatever_comes_late_of_another(
    nats_server: NatsServer, prefix: str
) -> None:
    plan = Plan(prefix)
    async with opened_on_nats(nats_server.url, plan, CLOCK) as outbox:
        # given a lot that is under way, and that nobody waits for any more
        await bury(outbox, [Entry(f"m-{number}", b"x" * 20_000, ACCEPTED_AT) for number in range(100)])
        letters = outbox._letters
        late, reader = await letters._open_reader(0), await letters._open_reader(0)
        await outbox._connection.publish(
            f"{API}.CONSUMER.MSG.NEXT.{plan.letters_stream}.{late}",
            orjson.dumps({"batch": 50, "no_wait": True}),
            reply=f"{letters.puller._inbox}.late",
        )

        # when
        assert await letters.puller.pull(plan.letters_stream, reader, 100)

        # then
        assert sum(f".{reader}." in received.reply for received in letters._received) == 100


async def test_an_outbox_full_of_events_refuses_until_a_tenth_is_free(nats_server: NatsServer, prefix: str) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix, events=20), CLOCK) as outbox:
        # given
        await outbox.put(entries(20))
        with pytest.raises(OutboxFullError, match="POINTILLIST_OUTBOX_MAX_EVENTS allows 20") as refused:
            await outbox.put([entry(20)])
        assert refused.value.retry_after > 0
        waiting = asyncio.ensure_future(outbox.has_room())

        # when
        for stored in await take(outbox, 3):
            outbox.ack(stored)

        # then
        async with asyncio.timeout(DEADLINE):
            await waiting
        assert await outbox.put([entry(20)]) == [True]


async def test_what_another_replica_has_filled_refuses_too(nats_server: NatsServer, prefix: str) -> None:
    plan = Plan(prefix, events=20)
    async with (
        opened_on_nats(nats_server.url, plan, CLOCK) as one,
        opened_on_nats(nats_server.url, plan, CLOCK) as other,
    ):
        await one.put(entries(20))
        with pytest.raises(OutboxFullError):
            await other.put([entry(20)])
        assert other.full() is not None

        for stored in await take(one, 10):
            one.ack(stored)
        async with asyncio.timeout(DEADLINE):
            await other.has_room()
        await until(lambda: other.stats().events == 10)
        assert await other.put([entry(20)]) == [True]


async def test_a_put_that_has_room_for_a_part_only_fails_and_can_be_repeated(
    nats_server: NatsServer, prefix: str
) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix, events=10), CLOCK) as outbox:
        with pytest.raises(OutboxFullError, match="maximum messages exceeded"):
            await outbox.put(entries(15))
        for stored in await take(outbox, 10):
            outbox.ack(stored)
        await outbox.flush()
        async with asyncio.timeout(DEADLINE):
            await outbox.has_room()
        assert await outbox.put(entries(15)) == [False] * 10 + [True] * 5


# -- replicas


async def test_an_event_is_leased_to_one_replica_and_given_back_at_once_when_that_ends(
    nats_server: NatsServer, prefix: str
) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as other:
        async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as one:
            await one.put(entries(5))
            leased = await take(one, 5)
            assert await other.fetch(5) == []
            one.ack(leased[0])
        assert [stored.message_id for stored in await take(other, 4)] == ["m-1", "m-2", "m-3", "m-4"]


async def test_an_event_that_another_replica_accepted_is_told_of_at_once(nats_server: NatsServer, prefix: str) -> None:
    async with (
        opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as relaying,
        opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as accepting,
    ):
        arrived = asyncio.Event()
        relaying.subscribe(arrived.set)
        assert await relaying.fetch(5) == []
        await accepting.put([entry(1)])
        async with asyncio.timeout(DEADLINE):
            await arrived.wait()
        assert [stored.message_id for stored in await relaying.fetch(5)] == ["m-1"]


@pytest.mark.long
async def test_an_event_that_came_and_that_nobody_fetches_is_given_to_another_replica(
    nats_server: NatsServer, prefix: str
) -> None:
    async with (
        opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as paused,
        opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as other,
    ):
        assert await paused.fetch(5) == []
        await paused.put([entry(1)])
        await until(lambda: paused._fetched)
        assert [stored.message_id for stored in await take(other, 1)] == ["m-1"]


async def test_who_waits_for_a_delivery_hears_of_it_from_the_replica_that_relays(
    nats_server: NatsServer, prefix: str
) -> None:
    heard: list[tuple[str, Refusal | None]] = []
    async with (
        opened_on_nats(nats_server.url, Plan(prefix), CLOCK, settled=lambda *told: heard.append(told)) as accepting,
        opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as relaying,
    ):
        await accepting.put([one._replace(is_awaited=number < 2) for number, one in enumerate(entries(3))])
        delivered, refused, unawaited = await take(relaying, 3)
        relaying.ack(delivered)
        relaying.ack(unawaited)
        relaying.term(refused, REFUSAL)
        await until(lambda: len(heard) == 2)
    assert sorted(heard, key=str) == [("m-0", None), ("m-1", REFUSAL)]


@pytest.mark.long
async def test_an_event_in_work_stays_leased_for_longer_than_the_stream_waits(
    nats_server: NatsServer, prefix: str
) -> None:
    # given a consumer that waits for five seconds only
    plan = Plan(prefix)
    async with opened_on_nats(nats_server.url, plan, CLOCK):
        pass
    client = Client()
    await client.connect(nats_server.url)
    manager = client.jsm()
    consumer = (await manager.consumer_info(plan.events_stream, "relay")).config
    await manager.delete_consumer(plan.events_stream, "relay")
    await manager.add_consumer(plan.events_stream, consumer.evolve(ack_wait=5.0))
    await client.close()

    # when an event is held for twice that
    async with (
        opened_on_nats(nats_server.url, plan, CLOCK) as one,
        opened_on_nats(nats_server.url, plan, CLOCK) as other,
    ):
        await one.put([entry(1)])
        await take(one, 1)
        held_until = CLOCK.steady() + 11
        await until(lambda: CLOCK.steady() > held_until)

        # then
        assert await other.fetch(1) == []


# -- a server that goes away


async def test_an_outbox_that_is_not_there_yet_says_so_and_is_ready_when_it_is(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats") as server:
        server.stop()
        access = NatsAccess(NatsServers.parse(server.url))
        outbox = JetStreamOutbox(
            access, Plan(prefix), clock=CLOCK, retry_max_delay=RETRY_MAX_DELAY, settled=lambda *_: None
        )
        try:
            # given
            await outbox.start(0.05)
            assert f"NATS cannot be reached at 127.0.0.1:{server.port}" in refusal(outbox)
            with pytest.raises(OutboxUnavailableError, match="cannot be reached") as refused:
                await outbox.put([entry(1)])
            assert refused.type is OutboxUnavailableError
            assert await outbox.fetch(1) == []

            # when
            server.start()

            # then
            async with asyncio.timeout(DEADLINE):
                await outbox.has_room()
            assert await outbox.put([entry(1)]) == [True]
        finally:
            await outbox.close()


async def test_a_server_that_is_killed_loses_nothing_and_refuses_while_it_is_gone(tmp_path: Path, prefix: str) -> None:
    with nats_running(tmp_path / "nats", "") as server:
        async with opened_on_nats(server.url, Plan(prefix), CLOCK) as outbox:
            # given
            await outbox.put(entries(10))
            leased = await take(outbox, 4)
            outbox.ack(leased[0])
            await outbox.flush()

            # when
            server.stop(9)
            await until(lambda: outbox.full() is not None)
            with pytest.raises(OutboxUnavailableError) as refused:
                await outbox.put([entry(10)])
            assert refused.type is OutboxUnavailableError
            outbox.ack(leased[1])
            server.start()

            # then
            async with asyncio.timeout(DEADLINE):
                await outbox.has_room()
            assert await outbox.put([entry(10)]) == [True]
            await until(lambda: outbox._leases.unsettled == 0)
            await outbox.flush()
            assert outbox.stats().events == 9


async def test_puts_under_way_when_the_connection_breaks_are_refused_and_may_have_been_stored(
    tmp_path: Path, prefix: str
) -> None:
    with nats_running(tmp_path / "nats") as server:
        async with opened_on_nats(server.url, Plan(prefix), CLOCK) as outbox:
            puts = [asyncio.ensure_future(outbox.put(entries(50, first=50 * number))) for number in range(40)]
            await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
            server.stop(9)
            results = await asyncio.gather(*puts, return_exceptions=True)
            await until(lambda: outbox.full() is not None)
            assert all(result == [True] * 50 or type(result) is OutboxUnavailableError for result in results)
            await until(lambda: not outbox.is_connected)

            server.start()
            async with asyncio.timeout(DEADLINE):
                await outbox.has_room()
            await outbox.flush()
            acknowledged = sum(result == [True] * 50 for result in results)
            assert outbox.stats().events >= 50 * acknowledged


async def test_streams_that_were_deleted_are_made_anew(nats_server: NatsServer, prefix: str) -> None:
    plan = Plan(prefix)
    async with opened_on_nats(nats_server.url, plan, CLOCK) as outbox:
        client = Client()
        await client.connect(nats_server.url)
        await client.jsm().delete_stream(plan.events_stream)
        await client.close()
        with pytest.raises(
            OutboxUnavailableError, match=r"no stream takes events|streams of the outbox no longer exist"
        ):
            await outbox.put([entry(1)])

        stored: list[bool] = []
        async with asyncio.timeout(DEADLINE):
            while not stored:  # there is room for a moment, too, before the outbox looks and sees that they are gone
                await outbox.has_room()
                with contextlib.suppress(OutboxUnavailableError):
                    stored = await outbox.put([entry(1)])
        assert stored == [True]
        assert len(await take(outbox, 1)) == 1


async def test_an_event_that_has_the_place_of_an_older_one_in_a_stream_made_anew_is_another(
    nats_server: NatsServer, prefix: str
) -> None:
    plan = Plan(prefix)
    async with opened_on_nats(nats_server.url, plan, CLOCK) as outbox:
        # given events in work, whose stream is deleted and made anew
        await outbox.put(entries(3))
        old = await take(outbox, 3)
        client = Client()
        await client.connect(nats_server.url)
        await client.jsm().delete_stream(plan.events_stream)
        await client.close()
        async with asyncio.timeout(DEADLINE):
            await until(lambda: outbox.full() is not None)
            await outbox.has_room()

        # when as many come, and the first are delivered
        await outbox.put(entries(3, first=10))
        new = await take(outbox, 3)
        for stored in old:
            outbox.ack(stored)
        await outbox.flush()

        # then
        assert [stored.message_id for stored in new] == ["m-10", "m-11", "m-12"]
        assert outbox.stats().events == 3
        for stored in new:
            outbox.ack(stored)
        await outbox.flush()
        assert outbox.stats().events == 0


async def test_what_could_not_be_settled_does_not_settle_what_a_stream_made_anew_has_in_its_place(
    tmp_path: Path, prefix: str
) -> None:
    plan = Plan(prefix)
    with nats_running(tmp_path / "nats") as server:
        async with opened_on_nats(server.url, plan, CLOCK) as outbox:
            # given events that were delivered while NATS was away, and a NATS that comes back with an empty disk
            await outbox.put(entries(3))
            old = await take(outbox, 3)
            server.stop()
            await until(lambda: not outbox.is_connected)
            for stored in old[:2]:
                outbox.ack(stored)
            outbox.term(old[2], REFUSAL)
            shutil.rmtree(server.folder / "store")
            server.start()

            # when others take their places
            await until(lambda: outbox.is_connected)
            await until(lambda: outbox.unreachable() is not None)  # the streams are seen to be gone
            async with asyncio.timeout(DEADLINE):
                await outbox.has_room()
            await outbox.put(entries(3, first=10))
            new = await take(outbox, 3)
            await until(lambda: outbox._leases.unsettled == 0)
            await outbox.flush()

            # then
            assert [stored.message_id for stored in new] == ["m-10", "m-11", "m-12"]
            assert outbox.stats().events == 3
            [letter] = await outbox.dead_letters.list(ALL, after=0, limit=10)
            assert letter.message_id == old[2].message_id


async def test_nobody_waits_for_settlements_once_nothing_sends_them(nats_server: NatsServer, prefix: str) -> None:
    async with opened_on_nats(nats_server.url, Plan(prefix), CLOCK) as outbox:
        # given a loop that ended, as by a fault of ours, which ends the server
        for task in outbox._tasks:
            task.cancel()
        await asyncio.wait(outbox._tasks)

        # when it is stopped
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(OutboxClosedError, match="about to end"):
                await outbox._leases.flush()
