"""Commands that call a server which demands a certificate of its callers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.certificates import OPENSSL, Pair, make_authority, make_certificate
from tests.support.commands import call
from tests.support.sandboxes import running_sandbox
from tests.support.server_processes import ServerProcess, running_server, settings_for

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")

MESSAGE = b'{"type": "track", "userId": "u", "event": "E", "messageId": "m"}\n'


class Place:
    """The server, and the files of its caller."""

    def __init__(self, folder: Path) -> None:
        self.authority = make_authority(folder, "authority")
        self.server_pair = make_certificate(folder, "server", self.authority)
        self.own = make_certificate(folder, "client", self.authority)
        self.settings: dict[str, str] = {}
        self.address = ""

    def options(self, own: Pair | None) -> tuple[str, ...]:
        """What a command is given."""
        given = ["--ca-file", str(self.authority.certificate)]
        if own is not None:
            given += ["--cert-file", str(own.certificate), "--key-file", str(own.key)]
        return tuple(given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with mutual TLS."""
    folder = tmp_path_factory.mktemp("mutual-tls")
    place, background = Place(folder), Background()
    background.start()
    try:
        sandbox = background.enter(running_sandbox())
        tls = {
            "tls_cert_file": str(place.server_pair.certificate),
            "tls_key_file": str(place.server_pair.key),
            "tls_client_ca_file": str(place.authority.certificate),
        }
        server: ServerProcess = background.enter(running_server(sandbox, folder, **tls))
        place.address = server.address
        place.settings = {**settings_for(folder / "outbox.db", sandbox, **tls)}
        place.settings["POINTILLIST_GRPC_LISTEN"] = server.address
        yield place
    finally:
        background.stop()


def test_send_and_dead_letters_reach_it_with_their_certificate_and_not_without(place: Place) -> None:
    target = ("--target", place.address)
    sent = call("send", "-", *target, *place.options(place.own), given=MESSAGE)
    assert (sent.code, "accepted: 1" in sent.out.replace("  ", " ")) == (0, True), sent
    listed = call("dead-letters", "list", *target, *place.options(place.own))
    assert (listed.code, listed.err) == (0, "no dead letters\n")

    without = call("dead-letters", "list", *target, *place.options(None))
    assert without.code == 2
    assert "needs --cert-file and --key-file" in without.err


def test_doctor_calls_it_with_a_certificate_and_looks_at_its_own_without(place: Place) -> None:
    said = call("doctor", *place.options(place.own), environ=place.settings).out
    assert f"grpc_listen: a server of ours answers at {place.address}" in said
    said = call("doctor", environ=place.settings).out
    assert f"grpc_listen: a server of ours answers at {place.address}" in said
    said = call("doctor", *place.options(None), environ=place.settings).out
    assert "--cert-file or --key-file is not right for it" in said


def test_a_certificate_without_a_key_or_with_another_one_is_refused_with_the_reason(place: Place) -> None:
    own, other, authority = place.own, place.server_pair, ("--ca-file", place.authority.certificate)
    missing = Path("/nowhere/key.pem")
    for options, reason in (
        ((*authority, "--cert-file", own.certificate), "--cert-file and --key-file go together"),
        (("--cert-file", own.certificate, "--key-file", own.key), "--cert-file goes with --ca-file"),
        (
            (*authority, "--cert-file", own.certificate, "--key-file", other.key),
            f"--cert-file {own.certificate}, --key-file {other.key}: ",
        ),
        ((*authority, "--cert-file", own.certificate, "--key-file", missing), f"{missing}: No such file or directory"),
    ):
        ended = call("dead-letters", "list", "--target", place.address, *map(str, options))
        assert ended.code == 2
        assert reason in ended.err
        assert "Traceback" not in ended.err
