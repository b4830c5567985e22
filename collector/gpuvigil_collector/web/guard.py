"""The outermost layer of every request: reading only, bounded paths, strict headers."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS: Final = frozenset({"GET", "HEAD"})
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
    """ASGI middleware: 405 for anything but GET and HEAD, 414 for endless paths, headers on every answer."""

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

        if scope["method"] not in _METHODS:
            await _refuse(guarded, 405, b"method", b"GET or HEAD", [(b"allow", b"GET, HEAD")])
        elif len(scope["path"]) + len(scope["query_string"]) > _PATH_MAX:
            await _refuse(guarded, 414, b"path", b"at most 4000 characters", [])
        else:
            await self._app(scope, receive, guarded)


async def _refuse(
    send: Send, status: int, field: bytes, expected: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    body = b'{"error":{"field":"%s","expected":"%s","got":"something else"}}' % (field, expected)
    headers = [*headers, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
