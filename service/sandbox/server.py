"""The sandbox: a local HTTP server that behaves as Pointillist's streaming API is known to behave.

    POST   /event           one record: 200, or 400 with a reason, 401 without the token, 413 over 1 MiB
    GET    /records         the last records as a JSON array, latest last; `?limit=N` for the last N
    DELETE /records         forgets them and resets every count
    GET    /stats           counts of POSTs, of records and of each answer
    GET    /behaviour       how POSTs are answered now
    POST   /behaviour       changes the answers from now on; a key that is left out gets its default

/records and /behaviour are for who runs it: a page in a browser cannot reach them, and where the sandbox listens beyond
loopback they need the header `apiToken`, as a POST of a record does.

Only `apiToken`, the address and one record a POST are publicly known of the real thing; the rest is usual HTTP. It is
also the sink of load tests, hence aiohttp's low-level server, no log line per request, and records kept as bytes.
"""

import asyncio
import hmac
import ipaddress
import os
import re
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import orjson
from aiohttp import web

from service.config.address import Listen
from service.errors import SettingsError
from service.loopback import is_loopback
from service.sandbox.behaviour import WITHOUT_ANSWER, Behaviour
from service.sandbox.record_shape import record_fault

__all__ = ["Behaviour", "Sandbox", "TakenRecord", "serve_sandbox"]

PRIVATE_PATHS = ("/records", "/behaviour")  # for who runs the sandbox
BACKLOG = 1024  # connections waiting to be accepted: a load test opens hundreds at once
STOP_GRACE = 0.05  # seconds that requests under way get when the sandbox stops

_Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")
_OK = b'{"status":"ok"}'
_TOO_LARGE = "the body is over 1 MiB"  # aiohttp's own bound for a request
_CUT_HEADER = b"HTTP/1.1 200 OK\r\nContent-Ty"


@dataclass(frozen=True, slots=True)
class TakenRecord:
    """One record that the sandbox took."""

    message_id: str
    """The Idempotency-Key, percent-decoded; empty where the POST had none."""

    body: bytes
    """The body as it came."""

    @property
    def record(self) -> dict[str, Any]:
        """The body, parsed."""
        parsed: dict[str, Any] = orjson.loads(self.body)
        return parsed

    @property
    def line(self) -> bytes:
        """The body as one line of JSON, without the line's end."""
        # In JSON a line break can only stand between tokens, so nothing but the layout changes.
        return self.body.replace(b"\n", b" ").replace(b"\r", b" ").strip()


class Sandbox:
    """One server, its records and its behaviour; it can be started again after a stop.

    Args:
        api_token: the required value of the header `apiToken`; None accepts every POST.
        behaviour: how POSTs are answered; `behaviour` may be set at any time.
        on_record: called with each record taken, as one line of JSON.
        keep: how many records are kept, the latest; beyond them only the counts remember.
        seed: for drawing the same answers again.

    Besides `records` it counts, since the start or the last `clear`: `requests` (POSTs of a record, whatever came of
    them), `taken` (records taken), `answers` (by status, or drop, hang, truncate), `most_in_flight` (the most POSTs
    under way at once; `in_flight` is how many are now).
    """

    def __init__(
        self,
        *,
        api_token: str | None = None,
        behaviour: Behaviour | None = None,
        on_record: Callable[[bytes], None] | None = None,
        keep: int = 10_000,
        seed: int | None = None,
    ) -> None:
        """Set the sandbox up; nothing listens before `start`."""
        self.behaviour = behaviour or Behaviour()
        self._token = None if api_token is None else api_token.encode()
        self._on_record = on_record
        self._random = Random(seed)  # noqa: S311 - chance here decides about faults, not about secrets
        self._records: deque[TakenRecord] = deque(maxlen=keep)
        self.in_flight = 0
        self._runner: web.ServerRunner | None = None
        self._address = ("", 0)
        self._handlers: dict[tuple[str, str], _Handler] = {
            ("POST", "/event"): self._count_event,
            ("GET", "/records"): self._show_records,
            ("DELETE", "/records"): self._forget_records,
            ("GET", "/stats"): self._show_stats,
            ("GET", "/behaviour"): self._show_behaviour,
            ("POST", "/behaviour"): self._change_behaviour,
        }
        self.clear()

    def clear(self) -> None:
        """Forget the records and reset every count."""
        self._records.clear()
        self.requests = 0
        self.taken = 0
        self.most_in_flight = self.in_flight
        self.answers: Counter[str] = Counter()

    @property
    def records(self) -> list[TakenRecord]:
        """The records taken, latest last, as many as are kept."""
        return list(self._records)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the last start."""
        return self._address

    @property
    def url(self) -> str:
        """The address for records, such as `http://127.0.0.1:8080/event`."""
        return f"http://{Listen(*self._address)}/event"

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Args:
            host: a name or an address to listen on.
            port: 0 for any free one; `address` then has it.

        Raises:
            SettingsError: the port is in use, or the host is not of this machine.
        """
        server = web.Server(self._handle, handler_cancellation=True, access_log=None, auto_decompress=False)
        runner = web.ServerRunner(server, shutdown_timeout=STOP_GRACE)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(
                f"cannot listen on {Listen(host, port)}: {_listen_fault(error)}; choose a free port of this machine"
            ) from error
        self._runner = runner
        self._address = runner.addresses[0][:2]

    async def stop(self) -> None:
        """Close the port and every connection; requests in progress get no answer. Records and counts stay."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one request; the paths are few and one is hot, so a dict looks them up rather than a router."""
        if request.path in PRIVATE_PATHS and (refused := self._stranger(request)) is not None:
            return refused
        handler = self._handlers.get((request.method, request.path))
        if handler is not None:
            return await handler(request)
        if methods := [method for method, path in self._handlers if path == request.path]:
            allowed = ", ".join(methods)
            return _refusal(
                405, f"{request.method} is not allowed on {request.path}; expected {allowed}", {"Allow": allowed}
            )
        paths = ", ".join(dict.fromkeys(path for _, path in self._handlers))
        return _refusal(404, f"nothing is at {request.path}; the paths are {paths}")

    def _stranger(self, request: web.BaseRequest) -> web.Response | None:
        """Refuse a request that is not from who runs the sandbox; None for one that is.

        A page can have a browser ask here: by its own host's name, which then leads to this machine, or across origins.
        """
        for header in ("Host", "Origin"):
            given = request.headers.get(header)
            if given is not None and not self._is_ours(given):
                return _refusal(403, f"{header} is {given!r}; expected localhost or an IP address")
        if is_loopback(self._address[0]):
            return None
        if self._token is None:
            return _refusal(401, "beyond loopback this needs a token; start the sandbox with --api-token")
        if not _is_token(request.headers.get("apiToken", ""), self._token):
            return _refusal(401, "the header apiToken is missing or not the right token")
        return None

    def _is_ours(self, authority: str) -> bool:
        """Return True for a Host, or an Origin, that no name of somebody else is in."""
        host = urlsplit(authority if "://" in authority else f"//{authority}").hostname or ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return is_loopback(host) or host == self._address[0]
        return True

    async def _count_event(self, request: web.BaseRequest) -> web.Response:
        """Answer a POST of a record, counted while it is under way."""
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer_event(request)
        finally:
            self.in_flight -= 1

    async def _answer_event(self, request: web.BaseRequest) -> web.Response:
        """Check the token, read the record, draw an answer, and take the record where the answer is a 2xx."""
        if self._token is not None and not _is_token(request.headers.get("apiToken", ""), self._token):
            return self._refuse(401, "the header apiToken is missing or not the right token")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(413, _TOO_LARGE)
        behaviour = self.behaviour
        answer = behaviour.draw(self._random)
        takes = answer.startswith("2")
        fault = record_fault(body) if takes else None
        if takes and fault is None:
            self._take(TakenRecord(unquote(request.headers.get("Idempotency-Key", "")), body))
        if behaviour.delay > 0:
            await asyncio.sleep(behaviour.delay)
        if fault is not None:
            return self._refuse(400, fault)
        self.answers[answer] += 1
        if answer in WITHOUT_ANSWER:
            await _break_off(request.transport, answer)
        return _json(_OK, int(answer)) if takes else _drawn_refusal(int(answer), behaviour.retry_after_seconds)

    def _take(self, record: TakenRecord) -> None:
        """Keep a record and show it."""
        self._records.append(record)
        self.taken += 1
        if self._on_record is not None:
            self._on_record(record.line)

    def _refuse(self, status: int, reason: str) -> web.Response:
        """Answer a POST of a record with a fault of its own, and count it."""
        self.answers[str(status)] += 1
        return _refusal(status, reason)

    async def _show_records(self, request: web.BaseRequest) -> web.Response:
        """Give the last records, just as they came."""
        records = self.records
        limit = request.query.get("limit", str(len(records)))
        if not _WHOLE_NUMBER.fullmatch(limit):
            return _refusal(400, f"limit: {limit!r} is not a whole number, zero or more")
        first = max(0, len(records) - int(limit))
        return _json(b"[" + b",".join(record.line for record in records[first:]) + b"]")

    async def _forget_records(self, _: web.BaseRequest) -> web.Response:
        """Clear records and counts."""
        self.clear()
        return web.Response(status=204)

    async def _show_stats(self, _: web.BaseRequest) -> web.Response:
        """Give the counts since the start or the last clear."""
        stats = {
            "requests": self.requests,
            "records": self.taken,
            "answers": self.answers,
            "most_in_flight": self.most_in_flight,
        }
        return _json(orjson.dumps(stats))

    async def _show_behaviour(self, _: web.BaseRequest) -> web.Response:
        """Give the behaviour in force, as it can be POSTed back."""
        return _json(orjson.dumps(self.behaviour.as_json()))

    async def _change_behaviour(self, request: web.BaseRequest) -> web.Response:
        """Replace the whole behaviour, or change nothing and say why."""
        try:
            self.behaviour = Behaviour.from_json(orjson.loads(await request.read()))
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, _TOO_LARGE)
        except orjson.JSONDecodeError as error:
            return _refusal(400, f"the body is not JSON: {error}")
        except SettingsError as error:
            return _refusal(400, str(error))
        return await self._show_behaviour(request)


async def serve_sandbox(listen: str, api_token: str | None, behaviour: Behaviour) -> None:
    """Run a sandbox until it is cancelled, gets SIGINT or SIGTERM, or nobody reads its output any more.

    Each record taken goes to standard output as one line of JSON, and nothing else does; the address goes to standard
    error.

    Args:
        listen: `HOST:PORT` or `[::1]:PORT`; port 0 for any free one.
        api_token: the required value of the header `apiToken`; None accepts every POST.
        behaviour: how POSTs are answered at first.

    Raises:
        SettingsError: nothing can listen there, or standard output cannot be written.
    """
    try:
        address = Listen.parse(listen)
    except ValueError as error:
        raise SettingsError(f"--listen: {error}") from error
    stopping = asyncio.Event()
    fault: OSError | None = None

    def print_record(line: bytes) -> None:
        try:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
        except OSError as error:
            # Where the reader has gone, as `| head` does, all is well.
            nonlocal fault
            fault = None if isinstance(error, BrokenPipeError) else error
            # Buffered output must not fail again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            stopping.set()

    sandbox = Sandbox(api_token=api_token, behaviour=behaviour, on_record=print_record)
    try:
        await sandbox.start(address.host, address.port)
    except SettingsError as error:
        raise SettingsError(f"--listen: {error}") from error
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stopping.set)
    try:
        sys.stderr.write(f"The sandbox takes records at {sandbox.url}\n")
        sys.stderr.flush()
        await stopping.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        await sandbox.stop()
    if fault is not None:
        raise SettingsError(f"standard output cannot be written: {fault.strerror}")


async def _break_off(transport: asyncio.Transport | None, how: str) -> NoReturn:
    """Leave a request without an answer; aiohttp cancels it once the connection is gone."""
    if transport is not None:
        if how == "drop":
            transport.abort()
        elif how == "truncate":
            transport.write(_CUT_HEADER)
            transport.close()
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody settles has ended")


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def _refusal(status: int, reason: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with a JSON body that gives a reason."""
    return _json(orjson.dumps({"status": status, "reason": reason}), status, headers)


def _drawn_refusal(status: int, retry_after: int | None) -> web.Response:
    """Answer as the behaviour asks for, with the headers that belong to the status."""
    headers = {}
    if status < 400:
        headers["Location"] = "/elsewhere"
    elif retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return _refusal(status, "the sandbox was told to answer so", headers)


def _is_token(given: str, expected: bytes) -> bool:
    """Compare tokens in constant time; aiohttp hands on bytes that are no UTF-8 as surrogates."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected)


def _listen_fault(error: OSError) -> str:
    """Say in the system's words why nothing can listen there; asyncio's own message repeats the address."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)
