"""The HTTP side of the metrics endpoint, bounded, for any local user may connect.

At most 8 connections are served at once and each for 5 s; what comes beyond is closed at once and counted.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from gpuvigil_agent.exposition import CONTENT_TYPE

HANDLERS_MAX: Final = 8
TIMEOUT_S: Final = 5.0
_BACKLOG: Final = 32
_GZIP_LEVEL: Final = 1


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection (HTTP/1.0), so that no idle connection holds a place."""

    server: MetricsServer
    timeout = TIMEOUT_S
    server_version, sys_version = "gpuvigil-agent", ""

    def do_GET(self) -> None:
        """Answer with all metrics, compressed where the client takes it."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "expected /metrics")
            return
        body = self.server.render()
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, _GZIP_LEVEL) if packed else body
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is no news, and a request line is anyone's text."""


class MetricsServer(http.server.HTTPServer):
    """Listens at once; `start` serves from a thread. Raises OSError when the address is taken."""

    request_queue_size = _BACKLOG

    def __init__(self, host: str, port: int, render: Callable[[], bytes]) -> None:
        self.render, self.refused, self.failed = render, 0, 0
        self._serving: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the machine's name, which asks DNS and may hang."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def start(self) -> None:
        """Serve from now on, until `shutdown`."""
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread of its own, or close it when all places are taken."""
        with self._lock:
            full = len(self._serving) >= HANDLERS_MAX
            if not full:
                self._serving[request] = time.monotonic()
        if full:
            self._refuse(request)
            self._end_overdue()
            return
        try:
            threading.Thread(
                target=self._serve, args=(request, client_address), name="scrape", daemon=True
            ).start()
        except RuntimeError:  # the system gives no thread: the next scrape may find one
            self._forget(request)
            self._refuse(request)

    def _refuse(self, request: socket.socket) -> None:
        self.refused += 1
        self.shutdown_request(request)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:  # the client went, or took longer than it may
            self.failed += 1
        finally:
            self._forget(request)
            self.shutdown_request(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._serving.pop(request, None)

    def _end_overdue(self) -> None:
        """Cut connections that trickle: the socket's own time limit begins anew with every byte."""
        limit = time.monotonic() - TIMEOUT_S
        with self._lock, contextlib.suppress(OSError):
            for request in [request for request, since in self._serving.items() if since < limit]:
                request.shutdown(socket.SHUT_RDWR)
