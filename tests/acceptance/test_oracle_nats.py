"""No acknowledged event is lost on JetStream, however often replicas and nats-servers are killed."""

from pathlib import Path

import pytest

from tests.acceptance.crashes import drawn_seed
from tests.acceptance.nats_crashes import NatsCrashRun
from tests.support.sizes import sized

KILLS = sized(2, 4)  # the first is of a nats-server, the second of a replica
KILLS_OF_A_CLUSTER = 8


async def test_no_acknowledged_event_is_lost_when_replicas_and_their_nats_server_are_killed(tmp_path: Path) -> None:
    # given
    run = NatsCrashRun(tmp_path / "nats", drawn_seed(), nodes=1)

    # when
    verdict = await run.run(KILLS)

    # then
    assert verdict.faults == {}
    assert len(verdict.ledger.accepted) > KILLS
    assert run.kills.keys() == {"nats-servers killed", "replicas killed"}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("roles", [("all", "all", "all"), ("accept", "accept", "relay", "relay")])
async def test_no_acknowledged_event_is_lost_when_servers_of_a_cluster_are_killed(
    tmp_path: Path, roles: tuple[str, ...]
) -> None:
    run = NatsCrashRun(tmp_path / "nats", drawn_seed(), nodes=3, roles=roles, stop_share=0.25)

    verdict = await run.run(KILLS_OF_A_CLUSTER)

    assert verdict.faults == {}
    assert run.kills.keys() >= {"nats-servers killed", "replicas killed"}
