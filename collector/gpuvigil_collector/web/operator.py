"""The API's writes: what operators say, each with a role, a reason and a journal entry that names who.

Refused unless granted: a request without a token that carries the role gets 401 or 403 and is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpuvigil_collector.repair import words
from gpuvigil_collector.repair.words import UnheardError
from gpuvigil_collector.web.query import VERSION
from gpuvigil_collector.web.roles import Person, Role, Roles
from gpuvigil_protos import log

_BODY_MAX: Final = 4096
_ANSWER_S: Final = 10.0
_log = log.get("web")


class Said(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of every write. seconds: how long it holds, where it holds for a time. what: of a drill."""

    why: str = ""
    seconds: float = 3600.0
    what: str = ""


@dataclass(frozen=True, slots=True)
class _Write:
    """One write: who may, and the word that it becomes, from (path parameter, body, name)."""

    role: Role
    word: Callable[[str, Said, str], words.Word]


_WRITES: Final[dict[str, _Write]] = {
    "/api/v1/pause": _Write("operator", lambda _, said, by: words.pause(by, said.why)),
    "/api/v1/resume": _Write("operator", lambda _, said, by: words.resume(by, said.why)),
    "/api/v1/breaker/close": _Write("admin", lambda _, said, by: words.close_breaker(by, said.why)),
    "/api/v1/actions/{id}/approve": _Write("operator", lambda it, _, by: words.approve(it, by)),
    "/api/v1/actions/{id}/reject": _Write("operator", lambda it, said, by: words.reject(it, by, said.why)),
    "/api/v1/nodes/{id}/maintenance": _Write(
        "operator", lambda it, said, by: words.maintain(it, said.seconds, by, said.why)
    ),
    "/api/v1/nodes/{id}/maintenance/end": _Write(
        "operator", lambda it, said, by: words.end_maintenance(it, by, said.why)
    ),
    "/api/v1/nodes/{id}/return": _Write("operator", lambda it, _, by: words.give_back(it, by)),
    "/api/v1/incidents/{id}/acknowledge": _Write(
        "operator", lambda it, said, by: words.mark("acknowledge", it, said.seconds, by, said.why)
    ),
    "/api/v1/incidents/{id}/silence": _Write(
        "operator", lambda it, said, by: words.mark("silence", it, said.seconds, by, said.why)
    ),
    "/api/v1/incidents/{id}/false-positive": _Write(
        "operator", lambda it, said, by: words.doubt(it, said.seconds, by, said.why)
    ),
    "/api/v1/nodes/{id}/drill": _Write("operator", lambda it, said, by: words.drill(it, said.what, by)),
}
PATHS: Final = tuple(_WRITES)


class Operator:
    """Makes the routes. ask: RepairDesk.ask."""

    def __init__(self, roles: Roles, ask: Callable[[words.Word], Future[Any]]) -> None:
        self._roles, self._ask = roles, ask
        self.refused = 0

    def routes(self) -> list[Route]:
        """One route a write."""
        return [Route(path, self._endpoint(write), methods=["POST"]) for path, write in _WRITES.items()]

    def permit(self, request: Request, needed: Role) -> Person | Response:
        """Return who asks, or the refusal."""
        person = self._roles.who(request.headers.get("authorization", ""))
        if person is not None and person.may(needed):
            return person
        self.refused += 1
        _log.warning("write_refused", path=request.url.path[:200], who=person.name if person else "nobody")
        if person is None:
            return _error(
                401, "authorization", f"Bearer and the token of an {needed}", "no token that is known"
            )
        return _error(403, "authorization", f"the role {needed}", person.role)

    def guarded(self, route: Route) -> Route:
        """Return a route of another part's; what it writes needs the role operator."""
        if "POST" not in (route.methods or ()):
            return route

        def endpoint(request: Request) -> Response:
            person = self.permit(request, "operator")
            if isinstance(person, Response):
                return person
            found: Response = route.endpoint(request)
            return found

        return Route(route.path, endpoint, methods=["POST"])

    def _endpoint(self, write: _Write) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            person = self.permit(request, write.role)
            if isinstance(person, Response):
                return person
            try:
                said = await _body(request)
                word = write.word(request.path_params.get("id", ""), said, person.name)
                found = await asyncio.wait_for(asyncio.wrap_future(self._ask(word)), _ANSWER_S)
            except UnheardError as unheard:
                return Response(msgspec.json.encode(unheard.body), 409, media_type="application/json")
            except TimeoutError:
                return _error(503, "brain", "a tick", "none in time")
            body = msgspec.json.encode({"version": VERSION, **found})
            return Response(body, 200, media_type="application/json")

        return endpoint


async def _body(request: Request) -> Said:
    """Read the small JSON body; none is an empty one. Raises UnheardError."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_MAX:
            raise UnheardError("body", f"at most {_BODY_MAX} bytes", "more")
    if not body:
        return Said()
    try:
        return msgspec.json.decode(body, type=Said)
    except msgspec.MsgspecError as error:
        raise UnheardError("body", 'JSON such as {"why": "...", "seconds": 3600}', str(error)) from None


def _error(status: int, field: str, expected: str, got: str) -> Response:
    body = {"error": {"field": field, "expected": expected, "got": got}}
    return Response(msgspec.json.encode(body), status, media_type="application/json")
