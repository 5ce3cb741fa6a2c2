import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import pytest

from service.errors import SettingsError
from service.pointillist.answer import Answer, Failure
from service.pointillist.client import HttpClient, Pointillist, connect, idempotency_key

TOKEN = "sesame-4711"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"status":"ok"}'
QUICK = 5.0  # seconds; far more than any of this takes, far less than the request timeout
TIMEOUT = 30.0  # seconds

# An authority made for these tests, and a certificate of its for localhost and 127.0.0.1, until 2119.
CA_CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBfjCCASOgAwIBAgIBATAKBggqhkjOPQQDAjAlMSMwIQYDVQQDDBpQb2ludGls
bGlzdCB0ZXN0IGF1dGhvcml0eTAgFw0yMDAxMDEwMDAwMDBaGA8yMTE5MDEwMTAw
MDAwMFowJTEjMCEGA1UEAwwaUG9pbnRpbGxpc3QgdGVzdCBhdXRob3JpdHkwWTAT
BgcqhkjOPQIBBggqhkjOPQMBBwNCAAT7T/efMMHLYxHIXrh8/J324+MPf+GghkZn
iFdeDiPEYvoLPuj5eBt3cCDhQ8Y/xn7aP95fSloFE45TZD84+Bt6o0IwQDAPBgNV
HRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwICBDAdBgNVHQ4EFgQUvWFCeMXQkOAC
r/D7giAmuWqYc8gwCgYIKoZIzj0EAwIDSQAwRgIhANd8GTFwECGUkAQ7IuP8KVOS
6ZefPxo24iNAsltz2JS9AiEAnwuddDctmuqthdB/BzCD+iMsuGAt/i/YYzOdPYCu
Wu8=
-----END CERTIFICATE-----
"""
SERVER_CERTIFICATE_AND_KEY = """\
-----BEGIN CERTIFICATE-----
MIIBqDCCAU6gAwIBAgIBAjAKBggqhkjOPQQDAjAlMSMwIQYDVQQDDBpQb2ludGls
bGlzdCB0ZXN0IGF1dGhvcml0eTAgFw0yMDAxMDEwMDAwMDBaGA8yMTE5MDEwMTAw
MDAwMFowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEXQ9V6FdzkrvkSCqxbfrqLULcFcI3vqrtJisycYZS+WpFTJWMWipPEvo1
wpX5P3E7EvYaDp02k7Ojf4I6bi6jgKN+MHwwGgYDVR0RBBMwEYIJbG9jYWxob3N0
hwR/AAABMAkGA1UdEwQCMAAwEwYDVR0lBAwwCgYIKwYBBQUHAwEwHwYDVR0jBBgw
FoAUvWFCeMXQkOACr/D7giAmuWqYc8gwHQYDVR0OBBYEFIBJ7a2kRvYj5x6dTuaS
H0KZ0GP2MAoGCCqGSM49BAMCA0gAMEUCIBs1s4+0Rf5Ml2ngWwZC8bpiuhL0J2Zf
ITOU6TLsIOF/AiEA8qHs8bD7/oHZzz8onHNL9Z3OCF/4/R0aMc2CwtbuskE=
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgDLAO4DGV8LVy1Qrr
c2r7HG09VvbbqtdzrIktE8v9rJGhRANCAARdD1XoV3OSu+RIKrFt+uotQtwVwje+
qu0mKzJxhlL5akVMlYxaKk8S+jXClfk/cTsS9hoOnTaTs6N/gjpuLqOA
-----END PRIVATE KEY-----
"""

Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """What a raw server saw: one text a request, and the connections that were opened and closed."""

    port: int = 0
    requests: list[str] = field(default_factory=list)
    opened: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/event"

    def header(self, name: str, index: int = -1) -> str:
        lines = self.requests[index].partition("\r\n\r\n")[0].split("\r\n")[1:]
        headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines}
        return headers[name.lower()]


@asynccontextmanager
async def serving(respond: Respond | bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve every request with the same bytes, or by a function that writes what it likes."""
    seen = Server()
    connections: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.opened += 1
        connections.append(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)
                seen.requests.append(head + (await reader.readexactly(length)).decode())
                if isinstance(respond, bytes):
                    writer.write(respond)
                else:
                    await respond(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # the other side has gone, or the test is over
        finally:
            seen.closed.set()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for connection in connections:
            assert connection is not None
            connection.cancel()
            await asyncio.wait([connection])


def then_close(data: bytes) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return respond


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def never(_: asyncio.StreamWriter) -> None:
    """Write nothing; the connection stays open until the other side closes it."""


def endless(head: bytes, chunk: bytes, pause: float) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(pause)

    return respond


@pytest.fixture(params=["pyreqwest", "httpx2"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HttpClient:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return cast("HttpClient", request.param)


@asynccontextmanager
async def connected(
    client: HttpClient,
    url: str,
    *,
    token: Callable[[], str] = lambda: TOKEN,
    timeout: float = TIMEOUT,  # noqa: ASYNC109  it is the setting, not a bound on this function
    ca_file: Path | None = None,
    proxy: str | None = None,
) -> AsyncIterator[Pointillist]:
    pointillist = connect(
        client=client, url=url, token=token, timeout=timeout, max_connections=8, ca_file=ca_file, proxy=proxy
    )
    try:
        yield pointillist
    finally:
        await pointillist.close()


async def posted(client: HttpClient, respond: Respond | bytes, *, within: float = QUICK) -> Answer:
    """POST once to a server that answers so, and give the answer; fails where it takes too long."""
    async with serving(respond) as server, connected(client, server.url) as pointillist:
        async with asyncio.timeout(within):
            return await pointillist.post(b"{}", "id-1")


async def test_a_post_carries_the_record_the_token_and_the_message_id(client: HttpClient) -> None:
    # given a server
    async with serving(OK) as server, connected(client, server.url) as pointillist:
        # when a record is posted
        answer = await pointillist.post(b'{"eventType":"identify"}', "id-1")
    # then it is all there, and the answer is its status
    assert answer == Answer(200)
    assert server.requests[0].startswith("POST /event HTTP/1.1\r\n")
    assert server.requests[0].endswith('\r\n\r\n{"eventType":"identify"}')
    assert server.header("apiToken") == TOKEN
    assert server.header("Content-Type") == "application/json"
    assert server.header("Idempotency-Key") == "id-1"
    assert server.header("User-Agent").startswith("pointillist-destination/")


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="no content"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="empty"),
        pytest.param(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", id="chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"x" * 90_000, id="large"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nnogzi", id="bad gzip"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nmuch too long", id="longer than it says"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nbanana\r\n", id="bad chunk"),
        pytest.param(b"HTTP/1.1 299 Fine\r\nX-Odd: \xff\xfe\r\nContent-Length: 0\r\n\r\n", id="odd header"),
    ],
)
async def test_a_complete_2xx_header_is_a_success_whatever_the_body_is(client: HttpClient, response: bytes) -> None:
    assert await posted(client, response) == Answer(int(response[9:12]))


async def test_a_2xx_body_that_is_cut_short_is_a_success(client: HttpClient) -> None:
    assert await posted(client, then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")) == Answer(200)


async def test_a_2xx_body_that_ends_in_a_reset_is_a_success(client: HttpClient) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await asyncio.sleep(0.05)  # for the header to arrive: a reset may overtake what was sent before it
        await reset(writer)

    assert await posted(client, respond) == Answer(200)


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("chunk", "pause"), [pytest.param(b"x" * 65_536, 0.0, id="flood"), pytest.param(b"x", 0.05, id="drip")]
)
async def test_an_endless_body_is_cut_off_long_before_the_request_timeout(
    client: HttpClient, status: int, chunk: bytes, pause: float
) -> None:
    # given a server whose body never ends
    respond = endless(b"HTTP/1.1 %d Odd\r\n\r\n" % status, chunk, pause)
    async with serving(respond) as server, connected(client, server.url) as pointillist:
        # when a record is posted
        async with asyncio.timeout(QUICK):
            answer = await pointillist.post(b"{}", "id-1")
            # then its status counts, and the connection is dropped
            await server.closed.wait()
    assert answer.status == status


async def test_a_body_that_stalls_is_cut_off_long_before_the_request_timeout(client: HttpClient) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    assert await posted(client, respond) == Answer(200)


async def test_another_answer_gives_the_start_of_its_body(client: HttpClient) -> None:
    answer = await posted(client, b"HTTP/1.1 400 Bad\r\nContent-Length: 12\r\n\r\nno eventTime")
    assert answer == Answer(400, body_start="no eventTime")


async def test_the_start_of_a_body_that_breaks_is_kept(client: HttpClient) -> None:
    answer = await posted(client, then_close(b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\nno eventTime"))
    assert answer == Answer(400, body_start="no eventTime")


async def test_the_start_of_a_body_is_bounded_and_always_text(client: HttpClient) -> None:
    body = b"\xff" + b"x" * 100_000
    answer = await posted(client, b"HTTP/1.1 500 Odd\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer == Answer(500, body_start="\N{REPLACEMENT CHARACTER}" + "x" * 999)


async def test_a_token_that_is_echoed_is_not_kept(client: HttpClient) -> None:
    body = f"bad token {TOKEN}".encode()
    answer = await posted(client, b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer == Answer(401, body_start="bad token [token]")


@pytest.mark.parametrize("location", ["http://127.0.0.1:{port}/elsewhere", "//", "http://[", "\xff"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(client: HttpClient, status: int, location: str) -> None:
    # given a server that redirects to another
    async with serving(OK) as other:
        to = location.format(port=other.port).encode("latin-1")
        response = b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, to)
        # when a record is posted
        answer = await posted(client, response)
        # then the redirect is the answer, and the other server has seen nobody
        assert answer == Answer(status)
        assert other.opened == 0


async def test_cookies_are_not_kept(client: HttpClient) -> None:
    response = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with serving(response) as server, connected(client, server.url) as pointillist:
        for _ in range(2):
            await pointillist.post(b"{}", "id-1")
    assert "cookie" not in server.requests[1].lower()


async def test_nobody_listening_is_refused(client: HttpClient) -> None:
    # given an address at which nobody listens any more
    async with serving(OK) as server:
        url = server.url
    # when a record is posted there
    async with connected(client, url) as pointillist:
        answer = await pointillist.post(b"{}", "id-1")
    assert (answer.status, answer.failure) == (None, Failure.REFUSED)


@pytest.mark.parametrize(
    ("respond", "failure"),
    [
        pytest.param(reset, Failure.RESET, id="reset"),
        pytest.param(then_close(b""), Failure.TRUNCATED, id="closed"),
        pytest.param(then_close(b"HTTP/1.1 200 OK\r\nContent-Le"), Failure.TRUNCATED, id="cut short"),
        pytest.param(then_close(b"BANANA SPLIT\r\n\r\n"), Failure.OTHER, id="not HTTP"),
        pytest.param(then_close(TOKEN.encode() + b"\r\n\r\n"), Failure.OTHER, id="the token echoed"),
        pytest.param(then_close(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 900_000), Failure.OTHER, id="too long"),
    ],
)
async def test_no_complete_header_is_a_failure(client: HttpClient, respond: Respond, failure: Failure) -> None:
    answer = await posted(client, respond)
    assert (answer.status, answer.failure) == (None, failure)
    assert 0 < len(answer.detail) <= 200
    assert TOKEN not in repr(answer)


async def test_a_name_that_does_not_resolve_is_a_dns_failure(client: HttpClient) -> None:
    async with connected(client, "http://pointillist.invalid/event") as pointillist:
        answer = await pointillist.post(b"{}", "id-1")
    assert (answer.status, answer.failure) == (None, Failure.DNS)


async def test_a_server_that_never_answers_times_out(client: HttpClient) -> None:
    async with serving(never) as server, connected(client, server.url, timeout=0.1) as pointillist:
        async with asyncio.timeout(QUICK):
            answer = await pointillist.post(b"{}", "id-1")
    assert (answer.status, answer.failure) == (None, Failure.TIMEOUT)


async def test_a_server_that_never_speaks_tls_times_out(client: HttpClient) -> None:
    async with serving(never) as server:
        url = server.url.replace("http:", "https:")
        async with connected(client, url, timeout=0.1) as pointillist, asyncio.timeout(QUICK):
            answer = await pointillist.post(b"{}", "id-1")
    assert (answer.status, answer.failure) == (None, Failure.TIMEOUT)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ("Retry-After: 17", 17.0),
        ("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:50:00 GMT", 23.0),
        ("Retry-After: soon", None),
        ("Retry-After: \xff", None),
        ("X-Nothing: 1", None),
    ],
)
async def test_retry_after_is_given_in_seconds(client: HttpClient, headers: str, seconds: float | None) -> None:
    response = f"HTTP/1.1 503 Busy\r\n{headers}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    assert await posted(client, response) == Answer(503, retry_after=seconds)


@pytest.mark.parametrize(
    ("message_id", "key"),
    [
        ("a-b_c.D~9!#$&'()*+,/:;=?@[]{}|\\^`<>\"", "a-b_c.D~9!#$&'()*+,/:;=?@[]{}|\\^`<>\""),
        ("a\rb\nc\0d\x7f\t", "a%0Db%0Ac%00d%7F%09"),
        ("é\N{PARTY POPPER}", "%C3%A9%F0%9F%8E%89"),
        ("\N{PARTY POPPER}" * 100, "%F0%9F%8E%89" * 100),
        (" a b ", "%20a%20b%20"),
        ("100%", "100%25"),
        ("%41", "%2541"),
    ],
)
async def test_a_message_id_is_percent_encoded(client: HttpClient, message_id: str, key: str) -> None:
    async with serving(OK) as server, connected(client, server.url) as pointillist:
        assert await pointillist.post(b"{}", message_id) == Answer(200)
    assert server.header("Idempotency-Key") == key == idempotency_key(message_id)
    assert unquote(key) == message_id


async def test_the_token_is_taken_anew_for_each_post(client: HttpClient) -> None:
    tokens = iter(["first", "second"])
    async with serving(OK) as server, connected(client, server.url, token=lambda: next(tokens)) as pointillist:
        for _ in range(2):
            await pointillist.post(b"{}", "id-1")
    assert [server.header("apiToken", index) for index in range(2)] == ["first", "second"]


@pytest.mark.parametrize("bad", [f"{TOKEN}\n", f"{TOKEN}\r\nX: y", f"{TOKEN}\0"])
async def test_a_token_that_cannot_be_sent_is_a_failure_that_does_not_quote_it(client: HttpClient, bad: str) -> None:
    async with serving(OK) as server, connected(client, server.url, token=lambda: bad) as pointillist:
        answer = await pointillist.post(b"{}", "id-1")
    assert answer.failure is Failure.OTHER
    assert TOKEN not in repr(answer)
    assert server.requests == []


async def test_a_token_that_cannot_be_read_is_a_failure(client: HttpClient) -> None:
    def token() -> str:
        raise PermissionError(TOKEN)

    async with serving(OK) as server, connected(client, server.url, token=token) as pointillist:
        answer = await pointillist.post(b"{}", "id-1")
    assert answer.failure is Failure.OTHER
    assert "PermissionError" in answer.detail
    assert TOKEN not in repr(answer)


async def test_the_token_is_in_no_repr_and_no_log(client: HttpClient, caplog: pytest.LogCaptureFixture) -> None:
    # given a log that takes everything
    caplog.set_level(0)
    async with serving(OK) as server, connected(client, server.url) as pointillist:
        # when a record is posted
        answer = await pointillist.post(b"{}", "id-1")
        # then the token is nowhere
        assert TOKEN not in repr(pointillist) + repr(answer) + caplog.text


async def test_posts_one_after_the_other_use_connections_again(client: HttpClient) -> None:
    # given a server whose bodies come a little after their headers
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-15])
        await asyncio.sleep(0)
        writer.write(OK[-15:])

    async with serving(respond) as server, connected(client, server.url) as pointillist:
        # when records are posted one after the other
        for index in range(50):
            assert await pointillist.post(b"{}", f"id-{index}") == Answer(200)
    # then they share few connections: one may be on its way back when the next POST starts
    assert len(server.requests) == 50
    assert server.opened <= 5


async def test_posts_at_once_do_not_wait_for_each_other(client: HttpClient) -> None:
    # given a server that answers once forty requests are there: more than there are connections to keep
    async def respond(writer: asyncio.StreamWriter) -> None:
        await all_there.wait()
        writer.write(OK)

    all_there = asyncio.Barrier(40)
    async with serving(respond) as server, connected(client, server.url) as pointillist, asyncio.timeout(QUICK):
        # when forty records are posted at once
        answers = await asyncio.gather(*(pointillist.post(b"{}", f"id-{index}") for index in range(40)))
    assert answers == [Answer(200)] * 40


@pytest.mark.parametrize("client", ["pyreqwest"])  # httpx2 takes it for one, as its docstring says
async def test_what_follows_a_body_is_no_answer_to_the_next_post(client: HttpClient) -> None:
    # given a server that sends a second answer nobody asked for with its first
    unasked = b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"
    async with serving(OK + unasked) as server, connected(client, server.url) as pointillist:
        # when records are posted one after the other
        answers = [await pointillist.post(b"{}", f"id-{index}") for index in range(20)]
    # then none is taken for refused
    assert 400 not in [answer.status for answer in answers]


async def test_a_post_that_is_cancelled_stops_waiting_for_its_answer(client: HttpClient) -> None:
    # given a POST that waits for its answer
    async def respond(_: asyncio.StreamWriter) -> None:
        asked.set()

    asked = asyncio.Event()
    async with serving(respond) as server, connected(client, server.url) as pointillist:
        post = asyncio.create_task(pointillist.post(b"{}", "id-1"))
        async with asyncio.timeout(QUICK):
            await asked.wait()
            # when it is cancelled
            post.cancel()
            # then it says so at once
            with pytest.raises(asyncio.CancelledError):
                await post


async def test_a_post_that_is_cancelled_while_its_body_is_read_is_cancelled(client: HttpClient) -> None:
    # given a POST that has its header, and a body that stalls
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        answered.set()

    answered = asyncio.Event()
    async with serving(respond) as server, connected(client, server.url) as pointillist:
        post = asyncio.create_task(pointillist.post(b"{}", "id-1"))
        async with asyncio.timeout(QUICK):
            await answered.wait()
            # when it is cancelled
            post.cancel()
            # then it says so, rather than to swallow it
            with pytest.raises(asyncio.CancelledError):
                await post


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    file = tmp_path / "server.pem"
    file.write_text(SERVER_CERTIFICATE_AND_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_a_certificate_of_the_ca_file_is_trusted(client: HttpClient, tls: ssl.SSLContext, tmp_path: Path) -> None:
    # given a server with a certificate of an authority of our own
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(CA_CERTIFICATE)
    async with serving(OK, tls) as server:
        url = f"https://localhost:{server.port}/event"
        # when a record is posted by a client that is told of it
        async with connected(client, url, ca_file=ca_file) as pointillist:
            assert await pointillist.post(b"{}", "id-1") == Answer(200)


async def test_a_certificate_of_an_unknown_authority_is_a_tls_failure(client: HttpClient, tls: ssl.SSLContext) -> None:
    async with serving(OK, tls) as server:
        url = f"https://localhost:{server.port}/event"
        async with connected(client, url) as pointillist:
            answer = await pointillist.post(b"{}", "id-1")
    assert (answer.status, answer.failure) == (None, Failure.TLS)
    assert server.requests == []


async def test_no_tls_at_the_other_end_is_a_tls_failure(client: HttpClient) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(OK)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/event"
        async with connected(client, url) as pointillist:
            answer = await pointillist.post(b"{}", "id-1")
    assert (answer.status, answer.failure) == (None, Failure.TLS)


async def test_a_proxy_that_is_named_is_used(client: HttpClient) -> None:
    async with serving(OK) as proxy:
        proxy_url = f"http://127.0.0.1:{proxy.port}"
        async with connected(client, "http://pointillist.invalid/event", proxy=proxy_url) as pointillist:
            assert await pointillist.post(b"{}", "id-1") == Answer(200)
    assert proxy.requests[0].startswith("POST http://pointillist.invalid/event HTTP/1.1\r\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_wants_a_password_is_a_407(client: HttpClient, scheme: str) -> None:
    response = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with serving(response) as proxy:
        proxy_url = f"http://127.0.0.1:{proxy.port}"
        async with connected(client, f"{scheme}://pointillist.invalid/event", proxy=proxy_url) as pointillist:
            assert await pointillist.post(b"{}", "id-1") == Answer(407)


async def test_the_proxy_of_the_environment_is_used_where_none_is_named(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(OK) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        async with connected(client, "http://pointillist.invalid/event") as pointillist:
            assert await pointillist.post(b"{}", "id-1") == Answer(200)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", None])
async def test_loopback_is_reached_without_a_proxy(
    client: HttpClient, name: str | None, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(OK) as proxy, serving(OK) as server:
        proxy_url = f"http://127.0.0.1:{proxy.port}"
        if name is not None:
            monkeypatch.setenv(name, proxy_url)
        url = server.url.replace("127.0.0.1", host)
        async with connected(client, url, proxy=None if name else proxy_url) as pointillist:
            assert await pointillist.post(b"{}", "id-1") == Answer(200)
    assert proxy.opened == 0


@pytest.mark.parametrize("url", ["", "stream.pointillist.com", "ftp://host/", "http://", "http://[::1/", "http://h:x/"])
async def test_an_address_that_is_none_is_refused(client: HttpClient, url: str) -> None:
    with pytest.raises(SettingsError, match="POINTILLIST_API_URL"):
        async with connected(client, url):
            pass


@pytest.mark.parametrize("proxy", ["", "proxy:3128", "http://user:secret@", "http://user:secret@host:99999"])
async def test_a_proxy_that_is_none_is_refused_without_its_password(client: HttpClient, proxy: str) -> None:
    with pytest.raises(SettingsError, match="POINTILLIST_API_PROXY") as raised:
        async with connected(client, "http://host/", proxy=proxy):
            pass
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("content", [None, "", "no certificate", CA_CERTIFICATE.replace("MII", "XXX")])
async def test_a_ca_file_without_certificates_is_refused(
    client: HttpClient, content: str | None, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    with pytest.raises(SettingsError, match=r"POINTILLIST_API_CA_FILE: .*ca\.pem"):
        async with connected(client, "https://host/", ca_file=ca_file):
            pass
