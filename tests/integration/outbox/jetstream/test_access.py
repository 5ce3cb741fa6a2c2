"""The outbox on JetStream: credentials and TLS, its errors, and streams that cannot be used."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
from nats.aio.client import Client

from service.clock import SystemClock
from service.config.settings import load_settings
from service.errors import OutboxUnusableError
from service.outbox.factory import nats_access, nats_plan, open_outbox
from service.outbox.jetstream.outbox import JetStreamOutbox
from tests.support.certificates import OPENSSL, make_authority, make_certificate
from tests.support.events import entry
from tests.support.nats import NatsServer, nats_running
from tests.support.outboxes import RETRY_MAX_DELAY, refusal
from tests.support.waiting import DEADLINE, until

CLOCK = SystemClock()


@asynccontextmanager
async def opened_by(environ: Mapping[str, str], patience: float = 20.0) -> AsyncIterator[JetStreamOutbox]:
    """An outbox as settings have it."""
    given = {"OUTBOX_MAX_BYTES": "10MiB", **environ}  # NATS sets so much aside for each test
    settings = load_settings({f"POINTILLIST_{name}": value for name, value in given.items()})
    outbox = JetStreamOutbox(
        nats_access(settings),
        nats_plan(settings),
        clock=CLOCK,
        retry_max_delay=RETRY_MAX_DELAY,
        settled=lambda *_: None,
    )
    try:
        await outbox.start(patience)
        yield outbox
    finally:
        await outbox.close()


async def is_refused(environ: Mapping[str, str], why: str) -> bool:
    """Return True if the outbox is refused, and reports the reason."""
    async with opened_by(environ, patience=0.0) as outbox:
        await until(lambda: why in refusal(outbox))
        return True


# -- who we are


async def test_a_user_and_password_of_the_url_get_in_and_a_wrong_one_is_told_without_it(tmp_path: Path) -> None:
    with nats_running(tmp_path / "nats", "authorization { user: me, password: 'p@ss' }") as server:
        host = f"127.0.0.1:{server.port}"
        async with opened_by({"OUTBOX_URL": f"nats://me:p%40ss@{host},localhost:{server.port}"}) as outbox:
            assert await outbox.put([entry(1)]) == [True]
        assert await is_refused({"OUTBOX_URL": f"nats://me:other@{host}"}, "Authorization Violation")
        async with opened_by({"OUTBOX_URL": f"nats://me:other@{host}"}, patience=0.0) as outbox:
            await until(lambda: "Authorization" in refusal(outbox))
            assert "other" not in refusal(outbox)


async def test_a_token_of_the_url_gets_in(tmp_path: Path) -> None:
    with nats_running(tmp_path / "nats", "authorization { token: sesame }") as server:
        async with opened_by({"OUTBOX_URL": f"nats://sesame@127.0.0.1:{server.port}"}) as outbox:
            assert await outbox.put([entry(1)]) == [True]


def _key(kind: int) -> nkeys.KeyPair:
    """A key pair of NATS: an operator's, an account's or a user's."""
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


def _claim(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, nats: dict[str, Any]) -> str:
    """A JSON web token as NATS has them."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    claims = {
        "jti": name,
        "iat": 1,
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": name,
        "nats": {"version": 2, **nats},
    }
    text = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{encoded(issuer.sign(text.encode()))}"


async def test_a_credentials_file_gets_in(tmp_path: Path) -> None:
    # given an operator, its system's account, ours and a user
    operator, user = _key(nkeys.PREFIX_BYTE_OPERATOR), _key(nkeys.PREFIX_BYTE_USER)
    account, system = _key(nkeys.PREFIX_BYTE_ACCOUNT), _key(nkeys.PREFIX_BYTE_ACCOUNT)
    unlimited = {"subs": -1, "data": -1, "payload": -1}
    limits = unlimited | {"conn": -1, "imports": -1, "exports": -1, "wildcards": True}
    ours = {"type": "account", "limits": limits | {"disk_storage": -1, "streams": -1, "consumer": -1}}
    claims = {
        account.public_key.decode(): _claim(operator, account, "account", ours),
        system.public_key.decode(): _claim(operator, system, "system", {"type": "account", "limits": limits}),
    }
    user_claim = _claim(account, user, "user", {"type": "user", "pub": {}, "sub": {}, **unlimited})
    credentials = tmp_path / "user.creds"
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_claim}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    configuration = (
        f"operator: {_claim(operator, operator, 'operator', {'type': 'operator'})}\nresolver: MEMORY\n"
        f"system_account: {system.public_key.decode()}\n"
        f"resolver_preload: {{ {', '.join(f'{key}: {claim}' for key, claim in claims.items())} }}"
    )
    with nats_running(tmp_path / "nats", configuration) as server:
        # when
        given = {"OUTBOX_URL": server.url, "NATS_CREDENTIALS_FILE": str(credentials)}
        async with opened_by(given) as outbox:
            # then
            assert await outbox.put([entry(1)]) == [True]


# -- TLS


async def test_tls_is_never_given_up_for_a_server_that_has_none(nats_server: NatsServer) -> None:
    url = f"tls://user:password@127.0.0.1:{nats_server.port}"
    assert await is_refused({"OUTBOX_URL": url}, "the server does not offer TLS, which POINTILLIST_OUTBOX_URL asks for")


@pytest.mark.skipif(OPENSSL is None, reason="certificates are made with openssl")
async def test_tls_is_spoken_with_an_authority_and_a_certificate_of_ours(tmp_path: Path) -> None:
    authority, other = make_authority(tmp_path, "authority"), make_authority(tmp_path, "other")
    theirs, ours = (make_certificate(tmp_path, name, authority) for name in ("server", "client"))
    configuration = (
        f'tls {{ cert_file: "{theirs.certificate}", key_file: "{theirs.key}",'
        f' ca_file: "{authority.certificate}", verify: true }}'
    )
    with nats_running(tmp_path / "nats", configuration) as server:
        given = {
            "OUTBOX_URL": f"tls://localhost:{server.port}",
            "NATS_CA_FILE": str(authority.certificate),
            "NATS_CERT_FILE": str(ours.certificate),
            "NATS_KEY_FILE": str(ours.key),
        }
        async with opened_by(given) as outbox:
            assert await outbox.put([entry(1)]) == [True]
        assert await is_refused(given | {"NATS_CA_FILE": str(other.certificate)}, "certificate verify failed")


async def test_a_tls_file_that_is_none_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(OutboxUnusableError, match="POINTILLIST_NATS_CA_FILE, _CERT_FILE or _KEY_FILE cannot be used"):
        async with opened_by({"OUTBOX_URL": "tls://localhost", "NATS_CA_FILE": str(file)}):
            pass


# -- streams that are there


@asynccontextmanager
async def manager(server: NatsServer) -> AsyncIterator[Any]:
    """The JetStream manager of an operator."""
    client = Client()
    await client.connect(server.url)
    try:
        yield client.jsm()
    finally:
        await client.close()


async def test_a_stream_of_an_operators_own_that_will_not_do_is_refused_with_what_differs(
    nats_server: NatsServer, prefix: str
) -> None:
    async with manager(nats_server) as streams:
        await streams.add_stream(name=f"{prefix}_EVENTS", subjects=[f"{prefix}.events"], storage="memory")
    settings = load_settings({"POINTILLIST_OUTBOX_URL": nats_server.url, "POINTILLIST_NATS_STREAM": prefix})
    with pytest.raises(OutboxUnusableError, match="retention is limits, and must be workqueue") as refused:
        await open_outbox(settings, CLOCK, lambda *_: None)
    assert "storage is memory, and must be file" in str(refused.value)
    assert "POINTILLIST_NATS_STREAM" in str(refused.value)


async def test_a_stream_of_an_operators_own_keeps_its_bounds(nats_server: NatsServer, prefix: str) -> None:
    async with manager(nats_server) as streams:
        await streams.add_stream(
            name=f"{prefix}_EVENTS",
            subjects=[f"{prefix}.events"],
            retention="workqueue",
            storage="file",
            discard="new",
            max_msgs=1,
        )
    async with opened_by({"OUTBOX_URL": nats_server.url, "NATS_STREAM": prefix}) as outbox:
        await outbox.put([entry(1)])
        assert "allows 1" in refusal(outbox)


async def test_a_stream_that_we_made_follows_the_settings(nats_server: NatsServer, prefix: str) -> None:
    given = {"OUTBOX_URL": nats_server.url, "NATS_STREAM": prefix}
    async with opened_by(given | {"OUTBOX_MAX_EVENTS": "1"}) as outbox:
        await outbox.put([entry(1)])
        assert outbox.full() is not None
    async with opened_by(given | {"OUTBOX_MAX_EVENTS": "5", "DUPLICATE_WINDOW": "1m"}) as outbox:
        assert await outbox.put([entry(2)]) == [True]
    async with manager(nats_server) as streams:
        config = (await streams.stream_info(f"{prefix}_EVENTS")).config
    assert (config.max_msgs, config.duplicate_window, config.max_bytes) == (5, 60.0, 10 * 1024**2)


async def test_more_room_than_nats_can_promise_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with nats_running(tmp_path / "nats", jetstream="max_file_store: 1MB") as server:
        with pytest.raises(OutboxUnusableError, match="POINTILLIST_OUTBOX_MAX_BYTES"):
            async with opened_by({"OUTBOX_URL": server.url, "OUTBOX_MAX_BYTES": "10MiB"}):
                pass
        async with opened_by({"OUTBOX_URL": server.url, "OUTBOX_MAX_BYTES": "500KiB"}) as outbox:
            assert await outbox.put([entry(1)]) == [True]


async def test_streams_that_turn_out_late_not_to_do_end_what_watches(tmp_path: Path) -> None:
    with nats_running(tmp_path / "nats") as server:
        async with manager(server) as streams:
            await streams.add_stream(name="POINTILLIST_EVENTS", subjects=["POINTILLIST.events"])
        server.stop()
        async with opened_by({"OUTBOX_URL": server.url}, patience=0.05) as outbox:
            server.start()
            with pytest.raises(OutboxUnusableError, match="retention is limits"):
                async with asyncio.timeout(DEADLINE):
                    await outbox.watch()
