"""The HTTP server that Prometheus scrapes, on a thread of its own, and one for each request."""

import contextlib
import errno
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from service.config.address import Listen
from service.errors import SettingsError
from service.telemetry.metrics import Metrics

STOP_POLL_INTERVAL: Final = 0.1  # seconds between checks of whether the server shall stop
BACKLOG: Final = 128  # connections that wait to be taken up; with the 5 of the base class a scrape waits for seconds
MAX_REQUESTS: Final = 16  # at a time, of which each has a thread; Prometheus makes one or two
MAX_SECONDS: Final = 10.0  # for a request and its answer, after which its connection is closed
PATH: Final = "/metrics"


Application: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """A running `/metrics`, or none: `stop` is right for both."""

    def __init__(self, server: ThreadingWSGIServer | None, listen: Listen | None) -> None:
        """Serve on a thread of its own; `listen` then has the port that was really bound."""
        self.listen = listen
        self._server = server
        self._thread: threading.Thread | None = None
        if server is not None:
            self._thread = threading.Thread(
                target=server.serve_forever, args=(STOP_POLL_INTERVAL,), name="metrics", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()


class _QuietHandler(WSGIRequestHandler):
    """Answers without a line on standard error for each request."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    """prometheus-client's server, but for what its `start_http_server` gives no way to change.

    Of connections that send no whole request, or do not read, there are so many at most: for one more the oldest is
    closed, so that none of them keeps Prometheus out.
    """

    request_queue_size = BACKLOG
    # With it two servers would share one port without a word, and Prometheus would see now one, now the other.
    allow_reuse_port = False

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._began_at: dict[socket.socket, float] = {}  # oldest first
        self._lock = threading.Lock()
        super().__init__(*arguments, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread; called on the server's own."""
        with self._lock:
            if len(self._began_at) >= MAX_REQUESTS:
                self._end(next(iter(self._began_at)))
            self._began_at[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; called on the thread that answered."""
        with self._lock:
            self._began_at.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that take too long; called at least every STOP_POLL_INTERVAL."""
        with self._lock:
            while self._began_at:
                request, began_at = next(iter(self._began_at.items()))
                if time.monotonic() - began_at < MAX_SECONDS:
                    return
                self._end(request)

    def _end(self, request: socket.socket) -> None:
        """Wake the thread of a request, which then closes its connection."""
        del self._began_at[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        """Bind without asking DNS for our own name, which takes seconds where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the signature is socketserver's
        """Log a scrape that broke off; the base class would print a traceback that is no log line."""
        structlog.get_logger().debug("metrics request failed", exc_info=True)


class _ServerOverIPv6(_Server):
    address_family = socket.AF_INET6


def _only_at_path(application: Application) -> Application:
    """Answer 404 to any other path; nothing is said of metrics there."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            return application(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"metrics are at {PATH}\n".encode()]

    return answer


def start_metrics_server(listen: Listen | None, metrics: Metrics) -> MetricsServer:
    """Serve the metrics in Prometheus' format at `/metrics`; with no address, serve nothing.

    Raises:
        SettingsError: when the address cannot be listened on.
    """
    if listen is None:
        return MetricsServer(None, None)
    server_class = _ServerOverIPv6 if ":" in listen.host else _Server
    application = _only_at_path(make_wsgi_app(metrics.registry))
    try:
        server = make_server(listen.host, listen.port, application, server_class, handler_class=_QuietHandler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"POINTILLIST_METRICS_LISTEN: {listen} is in use") from None
        raise SettingsError(f"POINTILLIST_METRICS_LISTEN: cannot listen on {listen}: {error.strerror}") from None
    return MetricsServer(server, Listen(listen.host, server.server_port))
