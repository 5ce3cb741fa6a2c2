"""What doctor finds, and that it only looks."""

import contextlib
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli.doctor.examine import Finding, Grade, examine
from service.clock import SystemClock
from service.config.settings import Settings
from service.outbox.base import Refusal
from service.outbox.sqlite.inspection import inspect_file
from service.outbox.sqlite.opening import SCHEMA_VERSION
from tests.support.events import entries, entry
from tests.support.outboxes import REFUSAL, bury, opened
from tests.support.paths import DATA

SCHEMA_1 = DATA / "outbox_schema_1.sql"
TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture
def api_url() -> Iterator[str]:
    """An address at which somebody answers the telephone, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/event"


def findings(folder: Path, api_url: str, **changed: Any) -> dict[str, Finding]:
    """What doctor finds, by check."""
    given: dict[str, Any] = {
        "api_token": TOKEN,
        "api_url": api_url,
        "outbox_url": f"sqlite:///{folder / 'outbox.db'}",
        "disk_free_floor": "0B",
        "outbox_max_bytes": "1MiB",
        "grpc_listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
    }
    settings = Settings(**{name: value for name, value in (given | changed).items() if value is not None})
    return {finding.check: finding for finding in examine(settings)}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of the database and of its log, whatever SQLite puts beside them to share memory."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".db-shm"}


async def fill(folder: Path, *, waiting: int = 0, dead: int = 0, refusal: Refusal = REFUSAL) -> None:
    """Make an outbox with so many events and dead letters, and close it."""
    async with opened(folder / "outbox.db", SystemClock()) as outbox:
        await bury(outbox, entries(dead, 1_000_000), refusal)
        now = round(time.time() * 1000)
        await outbox.put([entry(number, accepted_at=now) for number in range(waiting)])


# -- a healthy set-up


async def test_a_healthy_set_up_has_nothing_but_good_findings(tmp_path: Path, api_url: str) -> None:
    # given
    await fill(tmp_path, waiting=3)

    # when
    found = findings(tmp_path, api_url)

    # then
    assert {finding.grade for finding in found.values()} == {Grade.OK}
    assert all(not finding.advice for finding in found.values())
    assert list(found) == [
        "settings", "token", "mapping", "address", "grpc_listen", "metrics_listen", "disk", "integrity", "backlog",
        "age", "dead letters",
    ]  # fmt: skip


def test_an_outbox_that_is_not_there_yet_is_no_fault_and_is_not_made(tmp_path: Path, api_url: str) -> None:
    found = findings(tmp_path, api_url)

    assert found["outbox"].grade is Grade.OK
    assert "serve makes it" in found["outbox"].text
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_is_asked_for_comes_last(tmp_path: Path, api_url: str) -> None:
    # given
    settings = Settings(api_token=TOKEN, api_url=api_url, outbox_url=f"sqlite:///{tmp_path / 'outbox.db'}")  # type: ignore[arg-type]  # settings read text
    probed = Finding("probe", Grade.ERROR, "answers 401", "check the token")

    # when
    found = list(examine(settings, lambda: probed))

    # then
    assert found[-1] is probed


# -- what is wrong around the outbox


def test_a_missing_token_is_an_error_that_says_where_to_put_it(tmp_path: Path, api_url: str) -> None:
    found = findings(tmp_path, api_url, api_token=None)["token"]

    assert found.grade is Grade.ERROR
    assert "POINTILLIST_API_TOKEN" in found.text
    assert "serve does not start" in found.advice


async def test_no_finding_holds_the_token(tmp_path: Path, api_url: str) -> None:
    await fill(tmp_path, waiting=1, dead=1)

    assert all(TOKEN not in str(finding) for finding in findings(tmp_path, api_url).values())


def test_a_bad_mapping_file_is_an_error_that_names_the_file(tmp_path: Path, api_url: str) -> None:
    # given
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[[track]]\nfrom = "properties"\nto = "nowhere"\n', encoding="utf-8")

    # when
    found = findings(tmp_path, api_url, mapping_file=str(mapping))["mapping"]

    # then
    assert found.grade is Grade.ERROR
    assert str(mapping) in found.text
    assert "POINTILLIST_MAPPING_FILE" in found.advice


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b"])
def test_an_address_whose_host_cannot_be_resolved_is_an_error(tmp_path: Path, host: str) -> None:
    found = findings(tmp_path, f"http://{host}/event")["address"]

    assert found.grade is Grade.ERROR
    assert f"{host} cannot be resolved" in found.text
    assert "DNS" in found.advice


def test_an_address_where_nobody_answers_is_an_error(tmp_path: Path) -> None:
    # given
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    # when
    found = findings(tmp_path, f"http://127.0.0.1:{port}/event")["address"]

    # then
    assert found.grade is Grade.ERROR
    assert f"127.0.0.1:{port} does not answer" in found.text
    assert "firewall" in found.advice


def test_an_address_behind_a_proxy_is_not_asked_directly(tmp_path: Path) -> None:
    found = findings(tmp_path, "http://nowhere.invalid/event", api_proxy="http://127.0.0.1:3128")["address"]

    assert found.grade is Grade.OK
    assert "proxy" in found.text


def test_an_address_behind_a_proxy_of_the_environment_is_not_asked_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")

    found = findings(tmp_path, "https://nowhere.invalid/event")["address"]

    assert found.grade is Grade.OK
    assert "proxy" in found.text


def test_a_disk_below_its_floor_is_an_error(tmp_path: Path, api_url: str) -> None:
    floor = shutil.disk_usage(tmp_path).total

    found = findings(tmp_path, api_url, disk_free_floor=str(floor))["disk"]

    assert found.grade is Grade.ERROR
    assert "POINTILLIST_DISK_FREE_FLOOR" in found.advice


def test_a_disk_on_which_the_outbox_cannot_grow_to_its_bound_is_a_warning(tmp_path: Path, api_url: str) -> None:
    most = shutil.disk_usage(tmp_path).total

    found = findings(tmp_path, api_url, outbox_max_bytes=str(most))["disk"]

    assert found.grade is Grade.WARNING
    assert "POINTILLIST_OUTBOX_MAX_BYTES" in found.advice


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, api_url: str) -> None:
    found = findings(tmp_path / "gone", api_url)["disk"]

    assert found.grade is Grade.ERROR
    assert str(tmp_path / "gone") in found.text
    assert "make the folder" in found.advice


def test_an_outbox_whose_folder_is_not_there_is_not_said_to_be_made(tmp_path: Path, api_url: str) -> None:
    found = findings(tmp_path / "gone", api_url)["outbox"]

    assert found.grade is Grade.ERROR
    assert "serve makes it" not in found.text


def test_the_floor_is_said_where_there_is_room_enough(tmp_path: Path, api_url: str) -> None:
    found = findings(tmp_path, api_url, disk_free_floor="1MiB")["disk"]

    assert found.grade is Grade.OK
    assert "of which 1MiB are kept free" in found.text


# -- where the server listens


@pytest.mark.parametrize("name", ["grpc_listen", "metrics_listen", "health_listen"])
def test_an_address_where_another_program_listens_is_an_error(tmp_path: Path, api_url: str, name: str) -> None:
    # given a program that hangs up on whoever calls
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"

        # when
        found = findings(tmp_path, api_url, **{name: address})[name]
        server.shutdown(socket.SHUT_RDWR)

    # then
    assert found.grade is Grade.ERROR
    assert found.text == f"another program listens on {address}"
    assert f"POINTILLIST_{name.upper()}" in found.advice


def hang_up(server: socket.socket) -> None:
    """Take every connection and close it, until the server is closed."""
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


@pytest.mark.parametrize("address", ["192.0.2.1:50051", "nowhere.invalid:50051", "a..b:50051"])
def test_an_address_that_is_not_this_machines_is_an_error(tmp_path: Path, api_url: str, address: str) -> None:
    found = findings(tmp_path, api_url, grpc_listen=address)["grpc_listen"]

    assert found.grade is Grade.ERROR
    assert f"cannot listen on {address}" in found.text
    assert "POINTILLIST_GRPC_LISTEN" in found.advice


async def test_one_is_not_said_in_the_plural_and_none_is_said_in_words(tmp_path: Path, api_url: str) -> None:
    await fill(tmp_path)
    assert findings(tmp_path, api_url)["backlog"].text.startswith("no event waits")

    await fill(tmp_path, waiting=1)
    assert findings(tmp_path, api_url)["backlog"].text.startswith("1 event waits")
    assert "(1 address)" in findings(tmp_path, api_url)["address"].text


# -- what is wrong in the outbox


@pytest.mark.parametrize("bound", [{"outbox_max_events": "3"}, {"outbox_max_bytes": "100B"}])
async def test_a_full_backlog_is_an_error(tmp_path: Path, api_url: str, bound: dict[str, str]) -> None:
    # given
    await fill(tmp_path, waiting=3)

    # when
    found = findings(tmp_path, api_url, **bound)["backlog"]

    # then
    assert found.grade is Grade.ERROR
    assert found.text.startswith("3 events wait")
    assert "raise its bounds" in found.advice


async def test_an_event_that_waits_for_long_is_a_warning(tmp_path: Path, api_url: str) -> None:
    # given
    async with opened(tmp_path / "outbox.db", SystemClock()) as outbox:
        await outbox.put([entry(1, accepted_at=round((time.time() - 2 * 3600) * 1000))])

    # when
    found = findings(tmp_path, api_url)["age"]

    # then
    assert found.grade is Grade.WARNING
    assert "after 0 attempts" in found.text
    assert "Is the server running".lower() in found.advice.lower()


async def test_an_event_from_the_future_is_not_taken_for_an_old_one(tmp_path: Path, api_url: str) -> None:
    async with opened(tmp_path / "outbox.db", SystemClock()) as outbox:
        await outbox.put([entry(1, accepted_at=round((time.time() + 2 * 3600) * 1000))])

    assert findings(tmp_path, api_url)["age"].grade is Grade.OK


async def test_dead_letters_are_a_warning_that_says_why_they_are_dead(tmp_path: Path, api_url: str) -> None:
    # given
    await fill(tmp_path, dead=2)
    await fill(tmp_path, dead=0)
    async with opened(tmp_path / "outbox.db", SystemClock()) as outbox:
        await bury(outbox, [entry(7)], Refusal("max_age", None, "timeout"))

    # when
    found = findings(tmp_path, api_url)["dead letters"]

    # then
    assert found.grade is Grade.WARNING
    assert found.text == "3: 400 (2), max_age (1)"
    assert "dead-letters replay" in found.advice


async def test_as_many_dead_letters_as_are_allowed_are_an_error(tmp_path: Path, api_url: str) -> None:
    await fill(tmp_path, dead=2)

    found = findings(tmp_path, api_url, dead_letter_max_events="2")["dead letters"]

    assert found.grade is Grade.ERROR
    assert "paused" in found.advice


async def test_a_file_with_a_damaged_page_is_an_error_that_says_how_to_save_its_events(
    tmp_path: Path, api_url: str
) -> None:
    # given
    await fill(tmp_path, waiting=500)
    file = tmp_path / "outbox.db"
    damaged = bytearray(file.read_bytes())
    start = next(at for at in range(0, len(damaged), 4096) if damaged[at] == 0x0D and b"m-0" in damaged[at : at + 4096])
    damaged[start : start + 4096] = b"\xa5" * 4096
    file.write_bytes(damaged)

    # when
    found = findings(tmp_path, api_url)

    # then
    assert found["integrity"].grade is Grade.ERROR
    assert "docs/runbook.md" in found["integrity"].advice
    assert found["backlog"].text.startswith("500 events wait")
    assert file.read_bytes() == bytes(damaged)


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path, api_url: str) -> None:
    (tmp_path / "outbox.db").write_bytes(b"this is a letter to a friend\n" * 1000)

    found = findings(tmp_path, api_url)["outbox"]

    assert found.grade is Grade.ERROR
    assert "not an outbox" in found.text
    assert found.advice


def test_another_programs_database_is_an_error(tmp_path: Path, api_url: str) -> None:
    # given
    with sqlite3.connect(tmp_path / "outbox.db") as connection:
        connection.execute("CREATE TABLE song (title TEXT)")
    connection.close()

    # when
    found = findings(tmp_path, api_url)["outbox"]

    # then
    assert found.grade is Grade.ERROR
    assert "another program's database" in found.text


async def test_a_file_of_a_newer_version_is_an_error(tmp_path: Path, api_url: str) -> None:
    # given
    await fill(tmp_path)
    with sqlite3.connect(tmp_path / "outbox.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()

    # when
    found = findings(tmp_path, api_url)["outbox"]

    # then
    assert found.grade is Grade.ERROR
    assert "newer version" in found.text


def test_a_file_of_an_earlier_version_is_left_to_the_next_start(tmp_path: Path, api_url: str) -> None:
    # given
    with sqlite3.connect(tmp_path / "outbox.db") as connection:
        connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))
    connection.close()
    before = contents(tmp_path)

    # when
    found = findings(tmp_path, api_url)["outbox"]

    # then
    assert "the next start of serve migrates it" in found.text
    assert contents(tmp_path) == before


# -- it looks only


async def test_a_look_changes_nothing_in_a_file_that_nobody_has_open(tmp_path: Path, api_url: str) -> None:
    # given
    await fill(tmp_path, waiting=50, dead=5)
    before = contents(tmp_path)

    # when
    findings(tmp_path, api_url)

    # then
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not any(after[name] for name in after.keys() - before.keys())


async def test_a_look_changes_nothing_beside_a_running_server_and_sees_what_it_committed(
    tmp_path: Path, api_url: str
) -> None:
    async with opened(tmp_path / "outbox.db", SystemClock()) as outbox:
        # given
        await bury(outbox, [entry(999)])
        await outbox.put(entries(50))
        before = contents(tmp_path)

        # when
        found = findings(tmp_path, api_url)

        # then
        assert found["backlog"].text.startswith("50 events wait")
        assert found["dead letters"].text == "1: 400 (1)"
        assert contents(tmp_path) == before
        assert await outbox.put(entries(50, 100)) == [True] * 50


async def test_a_look_sees_what_a_server_left_that_was_killed(tmp_path: Path) -> None:
    # given
    killed = tmp_path / "killed"
    killed.mkdir()
    async with opened(tmp_path / "outbox.db", SystemClock()) as outbox:
        await outbox.put(entries(50))
        for name in ("outbox.db", "outbox.db-wal"):
            shutil.copy(tmp_path / name, killed / name)
    before = contents(killed)

    # when
    found = inspect_file(killed / "outbox.db")

    # then
    assert found.events == 50
    assert found.problems == ()
    assert contents(killed) == before
