"""The outermost layer of every request: bounded paths, strict headers, methods that are served.

A POST is somebody's word. It needs a header that no page of another origin can send, and in plain text a Host
that is an address: a name that was pointed here by others is refused. Who may say it is decided behind.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS: Final = frozenset({"GET", "HEAD"})
_ASKS: Final = re.compile(r"/api/v1/[!-~]{1,300}\Z")
_ASK_HEADER: Final = (b"x-gpuvigil-request", b"1")
_PATH_MAX: Final = 4000
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """ASGI middleware: 405 for what is neither read nor asked, 414 for endless paths, headers always."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        asks = scope["method"] == "POST" and _ASKS.match(scope["path"]) is not None
        if asks and _ASK_HEADER not in scope["headers"]:
            await _refuse(guarded, 403, b"X-Gpuvigil-Request", b"1", [])
        elif asks and scope.get("scheme") != "https" and not _is_address(scope["headers"]):
            await _refuse(guarded, 403, b"Host", b"an address or localhost", [])
        elif scope["method"] not in _METHODS and not asks:
            await _refuse(guarded, 405, b"method", b"GET or HEAD", [(b"allow", b"GET, HEAD")])
        elif len(scope["path"]) + len(scope["query_string"]) > _PATH_MAX:
            await _refuse(guarded, 414, b"path", b"at most 4000 characters", [])
        else:
            await self._app(scope, receive, guarded)


def _is_address(headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether the request was sent to an address, and not to a name that anyone may point here."""
    host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


async def _refuse(
    send: Send, status: int, field: bytes, expected: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    body = b'{"error":{"field":"%s","expected":"%s","got":"something else"}}' % (field, expected)
    headers = [*headers, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
