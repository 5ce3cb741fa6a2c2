"""Connections without a call are closed after a while; those with one are not."""

from pathlib import Path

import pytest

from service.server import grpc_server
from tests.support.raw_http2 import message, raw_connection
from tests.support.servers import serving
from tests.support.waiting import until


async def test_a_connection_without_a_call_is_closed_and_one_with_a_watcher_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    assert dict(grpc_server.OPTIONS)["grpc.max_connection_idle_ms"] == 300_000
    soon = {**dict(grpc_server.OPTIONS), "grpc.max_connection_idle_ms": 200}
    monkeypatch.setattr(grpc_server, "OPTIONS", tuple(soon.items()))
    async with serving(tmp_path) as server:
        address = str(server.app.grpc_listen)
        async with raw_connection(address) as watching, raw_connection(address) as idle:
            # when
            stream = await watching.call("/grpc.health.v1.Health/Watch", message(b""))
            await until(lambda: watching.answers[stream].messages == 1)
            await until(lambda: idle.is_closed)

            # then
            assert not watching.is_closed
