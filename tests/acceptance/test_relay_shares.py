"""Relays that are added while a backlog drains take their share of it."""

import pytest

from tests.acceptance.relay_shares import drain
from tests.support.nats import NatsServer

CONCURRENCY = 24  # of all relays together
DELAY = 0.05  # seconds that Pointillist takes, so that concurrency bounds what a relay delivers, and not the machine
FAIR = 0.5  # of an even share, at least: on a busy machine relays find different limits


@pytest.mark.parametrize(
    ("relays", "events"),
    [(2, 1_000), pytest.param(2, 5_000, marks=pytest.mark.long), pytest.param(3, 5_000, marks=pytest.mark.long)],
)
async def test_relays_that_are_added_while_a_backlog_drains_share_the_rest_and_the_concurrency(
    relays: int, events: int, nats_server: NatsServer, prefix: str
) -> None:
    drained = await drain(nats_server, prefix, events=events, relays=relays, concurrency=CONCURRENCY, delay=DELAY)

    # each takes its share of what was left when all were there
    assert drained.rest > events / 3  # enough to be shared
    assert min(share.delivered for share in drained.shares) > FAIR * drained.rest / relays
    # and together they have no more in flight than the operator allows
    assert max(drained.limits) <= CONCURRENCY // relays
    assert CONCURRENCY // relays < drained.most_in_flight <= CONCURRENCY
