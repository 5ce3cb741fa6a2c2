"""The connection to NATS, which is made anew for as long as it takes; the one module that knows its client.

While it is down nothing is buffered: what cannot be sent is refused, so that no event is stored that nobody waits for.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from service.config.fields import NatsServers
from service.errors import JetStreamError, OutboxUnavailableError, OutboxUnusableError

API = "$JS.API"
INBOX = "_INBOX."  # how the subjects begin on which answers come
REQUEST_TIMEOUT = 5.0  # seconds
CONNECT_TIMEOUT = 5  # seconds
RECONNECT_PAUSE = 0.5  # seconds between two tries to reach the same server
PING_INTERVAL = 10  # seconds; two that stay unanswered end a connection that died silently
MAX_UNSENT = 2 * 1024 * 1024  # bytes that wait for NATS to read them; whoever has more to send waits, too
UNSENT_PAUSE = 0.001  # seconds until that is looked at again
UNREACHED_RETRY = 1.0  # seconds until a caller tries again
NO_RESPONDERS = "503"
BROKEN = (errors.Error, OSError, RuntimeError)  # the last of uvloop, where what is written to closed a moment ago

Received: TypeAlias = Msg
"""A message that came: `subject`, `reply`, `headers` (or None) and `data`."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NatsAccess:
    """Where NATS is, and how it knows us."""

    servers: NatsServers
    credentials_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def names(self) -> str:
        """The servers, for people."""
        return ", ".join(map(str, self.servers.hosts))

    def tls(self) -> ssl.SSLContext | None:
        """What TLS is spoken with; None where nothing asks for it.

        Raises:
            OutboxUnusableError: a file is not what it should be.
        """
        if not self.servers.is_tls and self.ca_file is None and self.cert_file is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:
            message = (
                f"outbox: POINTILLIST_NATS_CA_FILE, _CERT_FILE or _KEY_FILE cannot be used: {error}; expected PEM"
                " files, and the key of that certificate"
            )
            raise OutboxUnusableError(message) from error
        return context


class _Client(Client):
    """nats-py's client, but where TLS is wanted it never goes on without, and it leaves a dead connection at once."""

    def _connect_command(self) -> bytes:
        # The client turns TLS on where the server asks for it, whatever the URL says; whoever sits in between could
        # have the server not ask, and would be shown the password in the command that is made here.
        if "tls" in self.options and not self._server_info.get("tls_required"):
            raise errors.SecureConnWantedError
        return super()._connect_command()

    async def _attempt_reconnect(self) -> None:
        # It closes the connection first, which waits until all is sent that was to be: where nobody reads any more,
        # as on a machine that lost its power, for a quarter of an hour or for ever.
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:  # noqa: SLF001  as above
            self._transport._io_writer.transport.abort()  # noqa: SLF001
        await super()._attempt_reconnect()


class Connection:
    """A connection that comes back."""

    def __init__(self, access: NatsAccess, *, lost: Callable[[], None]) -> None:
        """Make it; `run` connects.

        Args:
            access: where NATS is.
            lost: called when the connection breaks; what was asked and not answered may have been done.

        Raises:
            OutboxUnusableError: a TLS file cannot be used.
        """
        self._access = access
        self._tls = access.tls()
        self._lost = lost
        self._client: Client | None = None
        self._subscribed: dict[str, Callable[[Received], Awaitable[None]]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._up = asyncio.Event()
        self._ended = asyncio.Event()
        self._problem = "no answer yet"

    @property
    def problem(self) -> str | None:
        """Why NATS cannot be used now, in words; None while it can."""
        return None if self._up.is_set() else f"NATS cannot be reached at {self._access.names}: {self._problem}"

    @property
    def payload_most(self) -> int:
        """Bytes that a message may have, headers included."""
        assert self._client is not None
        return self._client.max_payload

    async def up(self) -> None:
        """Return once there is a connection."""
        await self._up.wait()

    async def run(self) -> None:
        """Connect, and connect again whenever the client gives up, until cancelled."""
        while True:
            self._ended.clear()
            client = self._client = _Client()
            try:
                await self._connect(client)
                for subject, callback in self._subscribed.items():
                    self._subscriptions[subject] = await client.subscribe(subject, cb=callback)
                self._set_up()
                await self._ended.wait()
            except (ValueError, *BROKEN) as error:
                await self._note_error(error)
            except asyncio.CancelledError:
                self._up.clear()  # it is we who end it, and that is no news
                raise
            finally:
                self._set_down()
                with contextlib.suppress(*BROKEN):
                    await client.close()
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _connect(self, client: Client) -> None:
        servers, credentials = self._access.servers, self._access.credentials_file
        scheme = "tls" if servers.is_tls else "nats"
        has_password = servers.password is not None
        await client.connect(
            [f"{scheme}://{host}" for host in servers.hosts],
            name="pointillist-destination",
            user=servers.user if has_password else None,
            password=servers.password,
            token=None if has_password else servers.user,
            user_credentials=None if credentials is None else str(credentials),
            tls=self._tls,
            error_cb=self._note_error,
            disconnected_cb=self._note_disconnected,
            reconnected_cb=self._note_reconnected,
            closed_cb=self._note_closed,
            connect_timeout=CONNECT_TIMEOUT,
            reconnect_time_wait=RECONNECT_PAUSE,  # type: ignore[arg-type]  # it sleeps so long; a float is fine
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL,
            pending_size=0,  # else it waits by itself for what was sent, for as long as that takes, uncancelled
        )

    # -- what is sent

    async def subscribe(self, subject: str, callback: Callable[[Received], Awaitable[None]]) -> None:
        """Have a coroutine called with each message on a subject, over every connection there will be."""
        self._subscribed[subject] = callback
        if self._up.is_set():
            self._subscriptions[subject] = await self._usable().subscribe(subject, cb=callback)

    async def unsubscribe(self, subject: str) -> None:
        """Hear no more of a subject; returns once NATS knows, and what it sent before is heard.

        Raises:
            OutboxUnavailableError: there is no connection.
        """
        del self._subscribed[subject]
        try:
            await self._subscriptions.pop(subject).drain()  # type: ignore[no-untyped-call]  # it says no type
        except BROKEN as error:
            raise self._unreached(error) from error

    async def publish(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message, once NATS has read enough of those before.

        Raises:
            OutboxUnavailableError: there is no connection; nothing was sent.
        """
        client = self._usable()
        while client.pending_data_size > MAX_UNSENT:
            await asyncio.sleep(UNSENT_PAUSE)
            client = self._usable()
        try:
            await client.publish(subject, data, reply, headers)
        except BROKEN as error:
            raise self._unreached(error) from error

    async def request(self, subject: str, data: bytes = b"") -> Received:
        """Send a message and wait for the answer to it.

        Raises:
            OutboxUnavailableError: no answer came; what was asked may have been done.
        """
        try:
            return await self._usable().request(subject, data, timeout=REQUEST_TIMEOUT)
        except BROKEN as error:
            raise self._unreached(error) from error

    async def ask(self, what: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream's API, such as `STREAM.INFO.NAME`, and give its answer.

        Raises:
            JetStreamError: it says no.
            OutboxUnavailableError: it does not answer.
        """
        data = b"" if question is None else orjson.dumps(question)
        try:
            answer: dict[str, Any] = orjson.loads((await self.request(f"{API}.{what}", data)).data)
        except orjson.JSONDecodeError as error:
            raise OutboxUnavailableError(
                f"JetStream's answer to {what} cannot be read: {error}", UNREACHED_RETRY
            ) from error
        if (fault := answer.get("error")) is not None:
            description = fault.get("description", "no reason given")
            raise JetStreamError(fault.get("code", 0), fault.get("err_code", 0), description, UNREACHED_RETRY)
        return answer

    async def flush(self) -> None:
        """Return once NATS has read all that was sent.

        Raises:
            OutboxUnavailableError: there is no connection.
        """
        try:
            await self._usable().flush()
        except BROKEN as error:
            raise self._unreached(error) from error

    async def renew(self) -> None:
        """Break the connection, because nothing comes through it any more, and make another one."""
        if self._client is not None:
            await self._client.force_reconnect()

    def _usable(self) -> Client:
        if self._client is None or not self._up.is_set():
            raise OutboxUnavailableError(self.problem or "NATS cannot be reached", UNREACHED_RETRY)
        return self._client

    def _unreached(self, error: Exception) -> OutboxUnavailableError:
        if isinstance(error, errors.NoRespondersError):
            return OutboxUnavailableError("nobody at NATS answers for JetStream: is it enabled?", UNREACHED_RETRY)
        return OutboxUnavailableError(self.problem or f"NATS does not answer: {_words(error)}", UNREACHED_RETRY)

    # -- what becomes of it

    def _set_up(self) -> None:
        self._up.set()
        self._problem = ""
        log.info("NATS is reached", servers=self._access.names)

    def _set_down(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._problem = self._problem or "the connection broke"
            log.warning("NATS is not reached any more; what callers send is refused until it is", why=self._problem)
            self._lost()

    async def _note_error(self, error: Exception) -> None:
        problem = _words(error)
        if problem != self._problem:
            self._problem = problem
            log.warning("NATS", servers=self._access.names, why=problem)

    async def _note_disconnected(self) -> None:
        self._set_down()

    async def _note_reconnected(self) -> None:
        self._set_up()

    async def _note_closed(self) -> None:
        self._ended.set()


def _words(error: Exception) -> str:
    """What a client's error says, for people."""
    if isinstance(error, errors.SecureConnWantedError):
        return "the server does not speak TLS, and POINTILLIST_OUTBOX_URL asks for it"
    return str(error).removeprefix("nats: ") or type(error).__name__
