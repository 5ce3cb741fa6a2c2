"""The command `doctor`, and the image's health check."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.sandbox.server import Behaviour
from tests.support.background import background
from tests.support.certificates import OPENSSL, make_authority, make_certificate
from tests.support.commands import call
from tests.support.processes import end, run, start
from tests.support.sandboxes import TOKEN, running_sandbox
from tests.support.server_processes import running_server


def settings(folder: Path, url: str, **changed: str) -> Mapping[str, str]:
    """A set-up that is all right where somebody answers at the address."""
    return {
        "POINTILLIST_API_TOKEN": "the-token",
        "POINTILLIST_API_URL": url,
        "POINTILLIST_GRPC_LISTEN": "127.0.0.1:0",
        "POINTILLIST_METRICS_LISTEN": "",
        "POINTILLIST_OUTBOX_URL": f"sqlite:///{folder}/outbox.db",
        "POINTILLIST_OUTBOX_MAX_BYTES": "1MiB",
        "POINTILLIST_DISK_FREE_FLOOR": "0B",
        **changed,
    }


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_healthy_set_up_is_all_right(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox:
        ended = await run("doctor", environ=settings(tmp_path, sandbox.url))

    assert ended.code == 0, ended.out
    assert all(line.startswith("ok ") for line in ended.out_lines), ended.out


def test_what_is_wrong_is_said_with_what_to_do_about_it_and_the_exit_code_is_1(tmp_path: Path) -> None:
    environ = settings(tmp_path / "gone", "http://127.0.0.1:1/event")

    ended = call("doctor", environ=environ)

    assert ended.code == 1
    assert any(line.startswith("error   address: 127.0.0.1:1 does not answer") for line in ended.out_lines)
    assert "        > make the folder, or set POINTILLIST_OUTBOX_URL" in ended.out_lines
    assert "serve makes it" not in ended.out
    assert ended.err == ""


async def test_beside_a_running_server_its_own_addresses_are_all_right(tmp_path: Path) -> None:
    health, metrics = free_address(), free_address()
    async with (
        running_sandbox() as sandbox,
        running_server(sandbox, tmp_path, health_listen=health, metrics_listen=metrics) as server,
    ):
        environ = settings(
            tmp_path,
            sandbox.url,
            POINTILLIST_GRPC_LISTEN=server.address,
            POINTILLIST_HEALTH_LISTEN=health,
            POINTILLIST_METRICS_LISTEN=metrics,
        )

        ended = await run("doctor", environ=environ)

    assert f"ok      grpc_listen: a server of ours answers at {server.address}" in ended.out_lines
    assert f"ok      metrics_listen: a server of ours answers at {metrics}" in ended.out_lines
    assert f"ok      health_listen: a server of ours answers at {health}" in ended.out_lines
    assert ended.code == 0, ended.out


@pytest.mark.parametrize(
    ("token", "answer", "grade", "said"),
    [
        (TOKEN, "200", "ok", "Pointillist answers 400 to an empty record: it is there, and takes the token"),
        ("wrong", "200", "error", "Pointillist answers 401 to an empty record"),
        (TOKEN, "404", "error", "Pointillist answers 404 to an empty record"),
        (TOKEN, "302", "error", "Pointillist answers 302 to an empty record"),
        (TOKEN, "503", "warning", "Pointillist answers 503 to an empty record"),
        (TOKEN, "408", "warning", "Pointillist answers 408 to an empty record"),
        (TOKEN, "407", "error", "Pointillist answers 407 to an empty record"),
    ],
)
def test_a_probe_says_what_pointillist_makes_of_the_token(
    tmp_path: Path, token: str, answer: str, grade: str, said: str
) -> None:
    with background() as loop:
        sandbox = loop.enter(running_sandbox(Behaviour({answer: 1.0})))

        ended = call("doctor", "--probe", environ=settings(tmp_path, sandbox.url, POINTILLIST_API_TOKEN=token))

        assert f"{grade:8}probe: {said}" in ended.out_lines
        assert ended.code == (1 if grade == "error" else 0)
        assert not sandbox.records


def test_a_probe_that_is_refused_ends_with_a_finding(tmp_path: Path) -> None:
    ended = call("doctor", "--probe", environ=settings(tmp_path, "http://127.0.0.1:1/event"))

    assert any(line.startswith("error   probe: no answer: refused: ") for line in ended.out_lines)
    assert (ended.code, ended.err) == (1, "")


def test_files_that_any_user_can_read_are_told_of(tmp_path: Path) -> None:
    # given
    outbox = tmp_path / "outbox.db"
    outbox.touch(mode=0o644)

    # when
    ended = call("doctor", environ=settings(tmp_path, "http://127.0.0.1:1/event"))

    # then
    assert f"warning files: any user can read {outbox} (mode 0644), of POINTILLIST_OUTBOX_URL" in ended.out_lines


# -- python -m service.probe


async def test_the_health_check_succeeds_while_the_server_serves_and_fails_after(tmp_path: Path) -> None:
    async with running_sandbox() as sandbox, running_server(sandbox, tmp_path) as server:
        environ = {"POINTILLIST_GRPC_LISTEN": server.address}

        while_serving = await end(await start(module="service.probe", environ=environ))
        await server.stop()
        after = await end(await start("delivery", module="service.probe", environ=environ))

    assert (while_serving.code, while_serving.err) == (0, "")
    assert (after.code, len(after.err_lines)) == (1, 1)
    assert after.err.startswith(server.address)


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
async def test_with_tls_the_health_check_says_what_to_set_and_doctor_knows_the_server(tmp_path: Path) -> None:
    # given
    pair = make_certificate(tmp_path, "server", make_authority(tmp_path, "authority"))
    certificate, key = str(pair.certificate), str(pair.key)
    async with (
        running_sandbox() as sandbox,
        running_server(sandbox, tmp_path, tls_cert_file=certificate, tls_key_file=key) as server,
    ):
        environ = settings(
            tmp_path,
            sandbox.url,
            POINTILLIST_GRPC_LISTEN=server.address,
            POINTILLIST_TLS_CERT_FILE=certificate,
            POINTILLIST_TLS_KEY_FILE=key,
        )

        # when
        probed = await end(await start(module="service.probe", environ=environ))
        examined = await run("doctor", environ=environ)

    # then
    assert (probed.code, len(probed.err_lines)) == (1, 1)
    assert "set POINTILLIST_HEALTH_LISTEN" in probed.err
    assert f"ok      grpc_listen: a server of ours answers at {server.address}" in examined.out_lines
