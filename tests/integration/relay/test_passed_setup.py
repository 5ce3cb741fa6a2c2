"""The setup with which Pointillist took an event outlives a restart, and another one is a first day again."""

from pathlib import Path

from service.mapping.mapping_file import compile_mapping, load_mapping
from service.outbox.sqlite.outbox import SqliteOutbox
from service.relay.passed_setup import PassedSetup
from tests.support.clock import HandClock
from tests.support.outboxes import opened

URL = "https://example.test/event"


def setup_of(outbox: SqliteOutbox, url: str = URL, token: str = "token") -> PassedSetup:
    mapping = load_mapping(None)
    return PassedSetup(outbox, url, lambda: token, lambda: mapping)


async def pass_once(setup: PassedSetup) -> None:
    setup.passed()
    assert setup._writing is not None
    await setup._writing


async def test_a_restart_with_the_same_setup_is_no_first_day(tmp_path: Path) -> None:
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        assert not await setup_of(outbox).has_passed()
        await pass_once(setup_of(outbox))
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        assert await setup_of(outbox).has_passed()


async def test_a_restart_with_another_address_or_token_is_a_first_day(tmp_path: Path) -> None:
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        await pass_once(setup_of(outbox))
        assert not await setup_of(outbox, url="https://other.test/event").has_passed()
        assert not await setup_of(outbox, token="other").has_passed()
        assert await setup_of(outbox).has_passed()


async def test_another_mapping_in_a_running_server_is_a_change_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        mapping = load_mapping(None)
        setup = PassedSetup(outbox, URL, lambda: "token", lambda: mapping)
        assert not setup.has_changed()

        mapping = compile_mapping('event_source = "Another"\n', "a test")
        assert setup.has_changed()
        assert not setup.has_changed()
        assert not await setup.has_passed()


async def test_no_token_can_be_read_from_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "outbox.db", HandClock()) as outbox:
        await pass_once(setup_of(outbox, token="a-secret-token"))
    assert b"a-secret-token" not in (tmp_path / "outbox.db").read_bytes()
