"""Serve the app in the collector's own asyncio loop: bound connections, no signal handling of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from gpuvigil_collector.config import Web, split_address
from gpuvigil_protos.settings import ConfigError


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the collector stops it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the collector."""
        yield


def bind(web: Web) -> socket.socket:
    """Bind the address before anything starts. Raises ConfigError when it is taken or not ours."""
    host, port = split_address(web.address, "web.address")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)  # here, so that a second collector is refused before it starts anything
    except OSError as error:
        listener.close()
        raise ConfigError(f"web.address: cannot listen on {web.address}: {error.strerror or error}") from None
    return listener


def make_server(app: Starlette, web: Web) -> Server:
    """Make the server for `app`; `serve(sockets=[...])` runs it until `should_exit`.

    With TLS a client needs a certificate of `tls.ca`: the API has no other lock. Raises ConfigError.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        lifespan="off",
        ws="none",
        http="h11",
        limit_concurrency=web.connections_max,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=3,
        ssl_certfile=web.tls.certificate or None,
        ssl_keyfile=web.tls.key or None,
        ssl_ca_certs=web.tls.ca or None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if web.tls.enabled else ssl.CERT_NONE,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"web.tls: the files are not a PEM certificate, its key and a CA: {error}"
        ) from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return Server(config)
