"""No acknowledged event is lost, however often the server is killed; and the oracle would see it if one were."""

from pathlib import Path
from random import Random

import orjson
import pytest

from pointillist_destination.v1 import dead_letter_service_pb2, event_service_pb2
from service.sandbox.server import Behaviour, TakenRecord
from tests.acceptance.crashes import CrashRun, connected, drained, drawn_seed, send_one
from tests.acceptance.oracle import Events, Evidence, Ledger, Verdict
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, settings_for
from tests.support.sizes import IS_FULL, sized
from tests.support.waiting import until

KILLS = sized(4, 10)


async def test_no_acknowledged_event_is_lost_when_the_server_is_killed_again_and_again(tmp_path: Path) -> None:
    # given
    run = CrashRun(tmp_path / "outbox.db", drawn_seed())

    # when
    verdict = await run.run(KILLS)

    # then
    assert verdict.faults == {}
    assert len(verdict.ledger.accepted) > KILLS
    # In a short run it may happen that no kill falls between a delivery and its settling.
    assert verdict.evidence.duplicates > 0 or not IS_FULL, "no delivery was repeated, so replay was not shown to work"


@pytest.mark.long
async def test_no_acknowledged_event_is_lost_with_the_portable_http_client_either(tmp_path: Path) -> None:
    run = CrashRun(tmp_path / "outbox.db", drawn_seed(), environment={"POINTILLIST_HTTP_CLIENT": "httpx2"})

    verdict = await run.run(KILLS)

    assert verdict.faults == {}
    assert verdict.evidence.duplicates > 0


@pytest.mark.long
async def test_no_acknowledged_event_is_lost_with_relay_workers_either(tmp_path: Path) -> None:
    run = CrashRun(tmp_path / "outbox.db", drawn_seed(), workers=2)

    verdict = await run.run(KILLS)

    assert verdict.faults == {}
    assert verdict.evidence.duplicates > 0


async def test_a_delivery_that_was_not_settled_before_the_kill_is_repeated_after_it(
    tmp_path: Path, relay_workers: str
) -> None:
    events = Events("repeat")
    async with running_sandbox(Behaviour(delay=60.0)) as sandbox:
        settings = settings_for(tmp_path / "outbox.db", sandbox, request_timeout="90s", relay_workers=relay_workers)

        # given a record that Pointillist has taken, and whose answer is on its way
        server = await ServerProcess.start(settings)
        try:
            async with connected(server) as stub:
                receipt = await send_one(stub, events, 1)
            await until(lambda: sandbox.taken == 1)

            # when
            await server.kill()
            sandbox.behaviour = Behaviour()
            server = await ServerProcess.start(settings)
            await drained(server)
        finally:
            await server.kill()

        # then
        assert receipt.outcome == event_service_pb2.OUTCOME_ACCEPTED
        assert [taken.message_id for taken in sandbox.records] == [events.message_id(1)] * 2


async def test_a_repeat_across_a_kill_is_a_duplicate_and_is_delivered_once(tmp_path: Path) -> None:
    events = Events("again")
    async with running_sandbox(Behaviour({"503": 1.0})) as sandbox:
        settings = settings_for(tmp_path / "outbox.db", sandbox)

        # given
        server = await ServerProcess.start(settings)
        try:
            async with connected(server) as stub:
                first = await send_one(stub, events, 1)
            await server.kill()

            # when
            server = await ServerProcess.start(settings)
            async with connected(server) as stub:
                second = await send_one(stub, events, 1)
            sandbox.behaviour = Behaviour()
            await drained(server)
        finally:
            await server.kill()

        # then
        outcomes = (event_service_pb2.OUTCOME_ACCEPTED, event_service_pb2.OUTCOME_DUPLICATE)
        assert (first.outcome, second.outcome) == outcomes
        assert len(sandbox.records) == 1


class TestTheOracleItself:
    """It sees what it is there to see."""

    events = Events("self")

    def judged(self, delivered: list[TakenRecord], accepted: int = 3) -> Verdict:
        """Three events were sent and so many accepted; this was delivered."""
        ledger = Ledger(self.events, Random(0), sent=3, accepted=set(range(1, accepted + 1)))
        evidence = Evidence(self.events)
        evidence.look_at_records(delivered)
        return Verdict(ledger, evidence)

    def taken(self, number: int, **fields: object) -> TakenRecord:
        """The record of an event, as delivered."""
        body = orjson.dumps(self.events.record(number) | fields)
        return TakenRecord(self.events.message_id(number), body)

    def test_it_finds_nothing_wrong_where_nothing_is(self) -> None:
        assert self.judged([self.taken(number) for number in (3, 1, 2)]).faults == {}

    def test_it_finds_an_event_that_was_lost(self) -> None:
        assert self.judged([self.taken(1), self.taken(3)]).faults == {"lost": [2]}

    def test_it_takes_a_dead_letter_for_not_lost(self) -> None:
        # given
        verdict = self.judged([self.taken(1), self.taken(3)])

        # when
        verdict.evidence.look_at_dead_letters(
            [dead_letter_service_pb2.DeadLetter(message_id=self.events.message_id(2), event=self.events.event(2))]
        )

        # then
        assert verdict.faults == {}

    def test_it_does_not_ask_for_an_event_that_was_sent_and_not_answered(self) -> None:
        assert self.judged([self.taken(1)], accepted=1).faults == {}

    def test_it_finds_an_event_that_was_never_sent(self) -> None:
        records = [self.taken(number) for number in (1, 2, 3, 4)] + [TakenRecord("other", b"{}")]

        assert self.judged(records).faults == {"invented": ["other", "self 4"]}

    @pytest.mark.parametrize("fields", [{"labels": {}}, {"eventTime": "2026-01-01T00:00:00.000Z"}, {"numbers": {}}])
    def test_it_finds_an_event_that_was_changed(self, fields: dict[str, object]) -> None:
        records = [self.taken(1), self.taken(2, **fields), self.taken(3)]

        assert self.judged(records).faults == {"changed": [2]}

    def test_it_counts_duplicates(self) -> None:
        assert self.judged([self.taken(number) for number in (1, 2, 3, 2, 2)]).evidence.duplicates == 2

    def test_it_finds_a_new_event_that_was_called_a_duplicate(self) -> None:
        # given
        ledger = Ledger(self.events, Random(0))
        number = ledger.draw()

        # when
        ledger.answered([number], duplicates=1)

        # then
        assert Verdict(ledger, Evidence(self.events)).faults["falsely called duplicates"] == [number]

    def test_it_lets_a_repeated_event_be_called_a_duplicate(self) -> None:
        # given
        ledger = Ledger(self.events, Random(0))
        ledger.lost_sight_of([ledger.draw()])
        while ledger.unanswered:
            number = ledger.draw()

        # when
        ledger.answered([number], duplicates=1)

        # then
        assert ledger.false_duplicates == set()
