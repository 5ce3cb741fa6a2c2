"""The connection to NATS, with endless reconnection; the only module that imports NATS' client.

Nothing is buffered while it is down: a message that cannot be sent is refused, so that no event is stored whose caller
no longer waits.
"""

import asyncio
import base64
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

from service.config.address import NatsServers
from service.errors import JetStreamError, OutboxUnavailableError, OutboxUnusableError

API = "$JS.API"
NOT_FOUND = 404  # an error of JetStream's API
INBOX = "_INBOX."  # prefix of the subjects of responses
REQUEST_TIMEOUT = 5.0  # seconds
CONNECT_TIMEOUT = 5  # seconds
RECONNECT_PAUSE = 0.5  # seconds between two attempts to reach the same server
PING_INTERVAL = 10  # seconds; two unanswered pings end a connection that died silently
MAX_UNSENT = 2 * 1024 * 1024  # bytes that NATS has not read yet; backpressure: further publishers wait
UNSENT_PAUSE = 0.001  # seconds until that is checked again
UNREACHED_RETRY = 1.0  # seconds until a caller tries again
NO_RESPONDERS = "503"
BROKEN = (errors.Error, OSError, RuntimeError)  # the last from uvloop, on a write to a connection that has just closed

Received: TypeAlias = Msg
"""A received message: `subject`, `reply`, `headers` (or None) and `data`."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NatsAccess:
    """Addresses, credentials and TLS files for NATS."""

    servers: NatsServers
    credentials_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def names(self) -> str:
        """The servers, for messages."""
        return ", ".join(map(str, self.servers.hosts))

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context; None if the settings do not ask for TLS.

        Raises:
            OutboxUnusableError: a file cannot be read, or is not PEM.
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
    """nats-py's client, except that it never falls back from TLS and abandons a dead connection at once."""

    def _connect_command(self) -> bytes:
        # The client turns TLS on if the server asks for it, whatever the URL says. Somebody in between could have the
        # server not ask, and would then receive the password in the command that is built here.
        if "tls" in self.options and not self._server_info.get("tls_required"):
            raise errors.SecureConnWantedError
        return super()._connect_command()

    async def _attempt_reconnect(self) -> None:
        # The client first closes the connection, which waits until everything is sent: a quarter of an hour or forever
        # if nobody reads any more, as on a machine that lost its power.
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:  # noqa: SLF001  as above
            self._transport._io_writer.transport.abort()  # noqa: SLF001
        await super()._attempt_reconnect()


class Connection:
    """A connection that is established again whenever it breaks."""

    def __init__(self, access: NatsAccess, *, lost: Callable[[], None]) -> None:
        """Create it; `run` connects.

        Args:
            access: to NATS.
            lost: called when the connection breaks; requests without a response may have been executed.

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
        """The reason why NATS cannot be used now; None while it can."""
        return None if self._up.is_set() else f"NATS cannot be reached at {self._access.names}: {self._problem}"

    @property
    def max_payload(self) -> int:
        """Maximum size of a message in bytes, headers included."""
        assert self._client is not None
        return self._client.max_payload

    async def up(self) -> None:
        """Return once connected."""
        await self._up.wait()

    async def run(self) -> None:
        """Connect, and again whenever the client gives up, until cancelled."""
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
                self._up.clear()  # ended on purpose: nothing to log
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
            reconnect_time_wait=RECONNECT_PAUSE,  # type: ignore[arg-type]  # passed to sleep; a float is fine
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL,
            pending_size=0,  # otherwise the client itself waits, without a limit, until NATS has read everything
        )

    # -- sending

    async def subscribe(self, subject: str, callback: Callable[[Received], Awaitable[None]]) -> None:
        """Call a coroutine with each message on a subject, on this connection and on every later one."""
        self._subscribed[subject] = callback
        if self._up.is_set():
            self._subscriptions[subject] = await self._usable().subscribe(subject, cb=callback)

    async def unsubscribe(self, subject: str) -> None:
        """End a subscription; return once NATS has confirmed it and every message sent before is handled.

        Raises:
            OutboxUnavailableError: not connected.
        """
        del self._subscribed[subject]
        try:
            await self._subscriptions.pop(subject).drain()  # type: ignore[no-untyped-call]  # untyped in nats-py
        except BROKEN as error:
            raise self._unreached(error) from error

    async def publish(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message, once NATS has read enough of the earlier ones.

        Raises:
            OutboxUnavailableError: not connected; nothing was sent.
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
        """Send a message and return the response.

        Raises:
            OutboxUnavailableError: no response came; the request may have been executed.
        """
        try:
            return await self._usable().request(subject, data, timeout=REQUEST_TIMEOUT)
        except BROKEN as error:
            raise self._unreached(error) from error

    async def call_api(self, method: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call a method of JetStream's API, such as `STREAM.INFO.NAME`, and return the response.

        Raises:
            JetStreamError: the response is an error.
            OutboxUnavailableError: there is no response.
        """
        data = b"" if request is None else orjson.dumps(request)
        try:
            response: dict[str, Any] = orjson.loads((await self.request(f"{API}.{method}", data)).data)
        except orjson.JSONDecodeError as error:
            raise OutboxUnavailableError(
                f"JetStream's response to {method} cannot be read: {error}", UNREACHED_RETRY
            ) from error
        if (fault := response.get("error")) is not None:
            description = fault.get("description", "no reason given")
            raise JetStreamError(fault.get("code", 0), fault.get("err_code", 0), description, UNREACHED_RETRY)
        return response

    async def find(self, method: str, request: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Call a method of JetStream's API; return None if there is none of what it names.

        Raises:
            JetStreamError: the response is another error.
            OutboxUnavailableError: there is no response.
        """
        try:
            return await self.call_api(method, request)
        except JetStreamError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    async def find_message(self, stream: str, which: dict[str, Any]) -> tuple[bytes, bytes] | None:
        """Return the headers and the body of a message in a stream, if there is one.

        Args:
            stream: its name.
            which: `{"seq": …}`, or `{"last_by_subj": …}`.

        Raises:
            OutboxUnavailableError: JetStream does not answer.
        """
        response = await self.find(f"STREAM.MSG.GET.{stream}", which)
        if response is None:
            return None
        headers, body = (base64.b64decode(response["message"].get(part, "")) for part in ("hdrs", "data"))
        return headers, body

    async def flush(self) -> None:
        """Return once NATS has read everything that was sent.

        Raises:
            OutboxUnavailableError: not connected.
        """
        try:
            await self._usable().flush()
        except BROKEN as error:
            raise self._unreached(error) from error

    async def reconnect(self) -> None:
        """Abandon the connection, because nothing comes through it any more, and connect again."""
        if self._client is not None:
            await self._client.force_reconnect()

    def _usable(self) -> Client:
        if self._client is None or not self._up.is_set():
            raise OutboxUnavailableError(self.problem or "NATS cannot be reached", UNREACHED_RETRY)
        return self._client

    def _unreached(self, error: Exception) -> OutboxUnavailableError:
        if isinstance(error, errors.NoRespondersError):
            return OutboxUnavailableError("JetStream does not answer at NATS: is it enabled?", UNREACHED_RETRY)
        return OutboxUnavailableError(self.problem or f"NATS does not answer: {_text(error)}", UNREACHED_RETRY)

    # -- connection state

    def _set_up(self) -> None:
        self._up.set()
        self._problem = ""
        log.info("connected to NATS", servers=self._access.names)

    def _set_down(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._problem = self._problem or "the connection broke"
            log.warning("lost connection to NATS; rejecting events until it is back", why=self._problem)
            self._lost()

    async def _note_error(self, error: Exception) -> None:
        problem = _text(error)
        if problem != self._problem:
            self._problem = problem
            log.warning("NATS connection error", servers=self._access.names, why=problem)

    async def _note_disconnected(self) -> None:
        self._set_down()

    async def _note_reconnected(self) -> None:
        self._set_up()

    async def _note_closed(self) -> None:
        self._ended.set()


def _text(error: Exception) -> str:
    """Return the message of a client's error."""
    if isinstance(error, errors.SecureConnWantedError):
        return "the server does not offer TLS, which POINTILLIST_OUTBOX_URL asks for"
    return str(error).removeprefix("nats: ") or type(error).__name__
