"""/api/v1/audit: whether the collector's journal is still what was written, by its chain and its anchor."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpuvigil_collector import anchor
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.web.query import VERSION, Query

_KEPT_S: Final = 10.0


class Audit:
    """One walk at a time, and at most one in 10 s: a walk reads the whole journal, and anyone may ask."""

    def __init__(self, journal: Journal, anchored: Path) -> None:
        self._journal, self._anchor = journal, anchored
        self._lock = threading.Lock()
        self._last: tuple[float, dict[str, Any]] | None = None

    def routes(self) -> tuple[Route, ...]:
        """The route; its endpoint is a plain function, so that it runs in a thread."""
        return (Route("/api/v1/audit", self.show, methods=["GET"]),)

    def show(self, request: Request) -> Response:
        """Answer with the newest walk. sqlite3.Error is answered by the app."""
        Query.of(request.query_params.multi_items(), ())
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > _KEPT_S:
                walked = self._journal.walked(self._heads())
                self._last = (time.monotonic(), msgspec.to_builtins(walked))
            found = self._last[1]
        body = msgspec.json.encode({"version": VERSION, **found})
        return Response(body, media_type="application/json")

    def _heads(self) -> list[anchor.Head]:
        """Read the anchor before the journal, so that no head is newer than what is walked."""
        try:
            return anchor.read(self._anchor)
        except OSError:
            return []  # `anchored` 0 says so, and the exporter's own fault is in the collector's health
