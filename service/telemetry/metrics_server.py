"""The HTTP server that Prometheus scrapes, on a thread of its own."""

import errno
import socket
import socketserver
import threading
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from service.config.address import Listen
from service.errors import SettingsError
from service.telemetry.metrics import Metrics

STOP_POLL_INTERVAL: Final = 0.1  # seconds between checks of whether the server shall stop


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
    """prometheus-client's server, but for two things that its `start_http_server` gives no way to change."""

    # With it two servers would share one port without a word, and Prometheus would see now one, now the other.
    allow_reuse_port = False

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


def start_metrics_server(listen: Listen | None, metrics: Metrics) -> MetricsServer:
    """Serve the metrics in Prometheus' format at `/metrics`; with no address, serve nothing.

    Raises:
        SettingsError: when the address cannot be listened on.
    """
    if listen is None:
        return MetricsServer(None, None)
    server_class = _ServerOverIPv6 if ":" in listen.host else _Server
    application = make_wsgi_app(metrics.registry)
    try:
        server = make_server(listen.host, listen.port, application, server_class, handler_class=_QuietHandler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"POINTILLIST_METRICS_LISTEN: {listen} is in use") from None
        raise SettingsError(f"POINTILLIST_METRICS_LISTEN: cannot listen on {listen}: {error.strerror}") from None
    return MetricsServer(server, Listen(listen.host, server.server_port))
