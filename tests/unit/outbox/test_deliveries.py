"""Callers that wait for a delivery."""

import pytest

from service.outbox.base import Refusal
from service.outbox.deliveries import DeliveryWaiters

REFUSAL = Refusal("400", 400, "no")


async def test_who_waits_hears_of_a_delivery() -> None:
    deliveries = DeliveryWaiters()
    with deliveries.expect("m-1") as delivered:
        deliveries.settled("m-1", None)
        assert await delivered is None


async def test_who_waits_hears_of_a_refusal() -> None:
    deliveries = DeliveryWaiters()
    with deliveries.expect("m-1") as delivered:
        deliveries.settled("m-1", REFUSAL)
        assert await delivered == REFUSAL


async def test_nobody_hears_of_another_event() -> None:
    deliveries = DeliveryWaiters()
    with deliveries.expect("m-1") as delivered:
        deliveries.settled("m-2", None)
        assert not delivered.done()


async def test_two_who_wait_for_the_same_event_both_hear_of_it() -> None:
    deliveries = DeliveryWaiters()
    with deliveries.expect("m-1") as one, deliveries.expect("m-1") as other:
        deliveries.settled("m-1", None)
        assert (await one, await other) == (None, None)


async def test_an_event_settled_twice_is_heard_of_once() -> None:
    deliveries = DeliveryWaiters()
    with deliveries.expect("m-1") as delivered:
        deliveries.settled("m-1", None)
        deliveries.settled("m-1", REFUSAL)
        assert await delivered is None


async def test_an_event_that_nobody_waits_for_is_no_matter() -> None:
    DeliveryWaiters().settled("m-1", None)


async def test_nothing_is_held_for_who_has_given_up() -> None:
    deliveries = DeliveryWaiters()

    with pytest.raises(TimeoutError), deliveries.expect("m-1"):
        raise TimeoutError

    assert deliveries._waiting == {}


async def test_who_gives_up_takes_nothing_from_another_who_waits_for_the_same_event() -> None:
    deliveries = DeliveryWaiters()
    with deliveries.expect("m-1") as other:
        with pytest.raises(TimeoutError), deliveries.expect("m-1"):
            raise TimeoutError

        deliveries.settled("m-1", None)
        assert await other is None
