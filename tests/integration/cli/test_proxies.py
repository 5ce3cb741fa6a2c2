"""Our own commands where the environment names proxies: a server on this machine is reached without them."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.background import Served, served
from tests.support.commands import call
from tests.support.processes import end, run, start

EVENT = b'{"type": "track", "userId": "u-1", "event": "Seen", "messageId": "%s"}\n'
NAMES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy", "GRPC_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


class Proxy:
    """A listener that accepts nothing; tells whether somebody has come."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"

    @property
    def was_asked(self) -> bool:
        self._listener.setblocking(False)
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def environ(self, *names: str) -> dict[str, str]:
        return dict.fromkeys(names, f"http://{self.address}") | {"no_proxy": "", "NO_PROXY": ""}


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Proxy(listener)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as shared:
        yield shared


@pytest.fixture
def environ(shared: Served, proxy: Proxy) -> dict[str, str]:
    return proxy.environ(*NAMES) | {"POINTILLIST_GRPC_LISTEN": shared.address}


@pytest.mark.parametrize("arguments", [("send", "-"), ("dead-letters", "list")])
def test_a_command_reaches_a_server_on_this_machine_without_a_proxy(
    arguments: tuple[str, ...], shared: Served, environ: dict[str, str], proxy: Proxy
) -> None:
    port = shared.address.rpartition(":")[2]
    for target in ((), ("--target", f"localhost:{port}")):
        ended = call(*arguments, *target, given=EVENT % b"id-1", environ=environ)
        assert ended.code == 0, ended.err
    assert not proxy.was_asked


def test_the_health_check_reaches_the_server_without_a_proxy(
    shared: Served, environ: dict[str, str], proxy: Proxy
) -> None:
    async def probe() -> int:
        return (await end(await start(module="service.probe", environ=environ))).code

    assert shared.background.run(probe()) == 0
    assert not proxy.was_asked


def test_doctor_knows_the_server_without_a_proxy(
    shared: Served, environ: dict[str, str], proxy: Proxy, tmp_path: Path
) -> None:
    settings = {
        "POINTILLIST_API_TOKEN": "token",
        "POINTILLIST_API_URL": shared.sandbox.url,
        "POINTILLIST_METRICS_LISTEN": "",
        "POINTILLIST_OUTBOX_URL": f"sqlite:///{tmp_path}/outbox.db",
    }

    ended = call("doctor", environ=environ | settings)

    assert f"a server of ours answers at {shared.address}" in ended.out
    assert "another program listens" not in ended.out
    assert not proxy.was_asked


def test_a_proxy_for_web_pages_is_none_for_a_server_elsewhere(shared: Served, proxy: Proxy) -> None:
    # given a proxy for everything but gRPC, and a name that nothing resolves
    environ = proxy.environ("https_proxy", "http_proxy")

    # when
    ended = shared.background.run(run("dead-letters", "list", "--target", "server.invalid:50051", environ=environ))

    # then it is not the proxy that is asked
    assert ended.code == 2
    assert not proxy.was_asked


def test_a_proxy_that_grpc_is_told_to_use_is_used(shared: Served) -> None:
    # given
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener)
        environ = proxy.environ("grpc_proxy")
        listener.settimeout(30)

        # when
        async def ask() -> bytes:
            process = await start("dead-letters", "list", "--target", "server.invalid:50051", environ=environ)
            connection = await asyncio.to_thread(listener.accept)
            with connection[0] as opened:
                asked = await asyncio.to_thread(opened.recv, 1024)
                opened.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            process.kill()
            await process.communicate()
            return asked

        asked = shared.background.run(ask())

    # then
    assert asked.startswith(b"CONNECT server.invalid:50051 ")
