"""/api/v1/alerting: who alerts and whether it arrives; POST /api/v1/test-alert, under the web's guard."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpuvigil_collector.alerting.names import TEST_ALERT
from gpuvigil_collector.alerting.service import Alerting
from gpuvigil_collector.alerting.trial import LEAST_S, MOST_S
from gpuvigil_collector.web.query import VERSION, BadQueryError, Json, Query
from gpuvigil_protos.settings import parse_seconds

_DEFAULT: Final = "2min"


def alerting_routes(alerting: Alerting) -> tuple[Route, ...]:
    """Return the routes. Endpoints are plain functions: they run in threads."""

    def show(request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        return _json({"version": VERSION, **alerting.status()}, 200)

    def test(request: Request) -> Response:
        query = Query.of(request.query_params.multi_items(), ("for",))
        seconds = _seconds(query.values.get("for", _DEFAULT))
        now_ns = time.time_ns()
        alerting.trial.begin(seconds, now_ns)
        body = {
            "mode": alerting.config.mode, "alertname": TEST_ALERT, "until_ns": alerting.trial.until_ns,
            "alertmanagers": len(alerting.config.alertmanagers),
        }  # fmt: skip
        return _json({"version": VERSION, **body}, 202)

    return (
        Route("/api/v1/alerting", show, methods=["GET"]),
        Route("/api/v1/test-alert", test, methods=["POST"]),
    )


def _seconds(text: str) -> float:
    expected = f'"{LEAST_S:g}s" to "{MOST_S:g}s"'
    try:
        seconds = parse_seconds(text)
    except ValueError:
        raise BadQueryError("for", expected, text) from None
    if not LEAST_S <= seconds <= MOST_S:
        raise BadQueryError("for", expected, text)
    return seconds


def _json(body: Json, status: int) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
