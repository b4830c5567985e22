"""The API, the metrics endpoint and liveness: reading, and one request; JSON errors, never a traceback."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gpuvigil_collector.export.metrics import render
from gpuvigil_collector.export.view import View
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.words import Word
from gpuvigil_collector.saves.desk import RefusedError
from gpuvigil_collector.saves.request import SaveRequest
from gpuvigil_collector.web import repair_rows, rows
from gpuvigil_collector.web.guard import Guard
from gpuvigil_collector.web.operator import Operator, Start, no_start
from gpuvigil_collector.web.query import VERSION, BadQueryError, Json, Query
from gpuvigil_collector.web.roles import Roles
from gpuvigil_protos import log

_ASK_S: Final = 10.0
_PAGED: Final = ("limit", "cursor")
_LINKS: Final = "\n".join(
    ["gpuvigil collector", "", "/api/v1/health", "/api/v1/nodes", "/api/v1/gpus", "/api/v1/jobs",
     "/api/v1/incidents", "/api/v1/incidents/ID", "/api/v1/goodput", "/api/v1/goodput/JOB", "/api/v1/saves",
     "/api/v1/saves/ID", "/api/v1/remediation", "/api/v1/cases", "/api/v1/actions", "/api/v1/actions/ID",
     "/api/v1/alerting", "/api/v1/audit", "/api/v1/ledger", "/metrics", "/healthz", ""]
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the API reads; each may be called from any thread."""

    view: Callable[[], View]
    ledger: Callable[[], list[Json]]
    journal: Callable[[str], list[Json]]
    registry: CollectorRegistry
    alive: Callable[[], bool]
    faults: Callable[[], list[str]]
    ask: Callable[..., Future[SaveRequest]]
    say: Callable[[Word], Future[Any]]
    roles: Roles
    start: Start = no_start
    more: tuple[Route, ...] = ()


def make_app(sources: Sources) -> Starlette:
    """Build the application. Endpoints are plain functions: they run in threads, beside the loop."""
    operator = Operator(sources.roles, sources.say, sources.start)
    api = _Api(sources, operator)
    routes = {
        "/": api.index, "/healthz": api.healthz, "/metrics": api.metrics, "/api/v1/health": api.health,
        "/api/v1/nodes": api.nodes, "/api/v1/gpus": api.gpus, "/api/v1/jobs": api.jobs,
        "/api/v1/incidents": api.incidents,
        "/api/v1/saves": api.saves, "/api/v1/saves/{id}": api.save,
        "/api/v1/remediation": api.remediation, "/api/v1/cases": api.cases,
        "/api/v1/actions": api.actions, "/api/v1/actions/{id}": api.action,
        "/api/v1/goodput": api.goodput, "/api/v1/goodput/{job}": api.goodput_of,
        "/api/v1/incidents/{id}": api.incident, "/api/v1/ledger": api.ledger,
    }  # fmt: skip
    asks = [
        Route("/api/v1/jobs/{job}/checkpoint", api.ask_save, methods=["POST"]),
        Route("/api/v1/jobs/{job}/restart", api.ask_restart, methods=["POST"]),
    ]
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()),
            *asks,
            *operator.routes(),
            *(operator.guarded(route) for route in sources.more),
        ],
        exception_handlers={
            BadQueryError: _bad_query,
            HTTPException: _http_error,
            sqlite3.Error: _journal_error,
            Exception: _bug,
        },
    )
    app.add_middleware(Guard)
    app.router.redirect_slashes = False
    return app


class _Api:
    """One method an endpoint."""

    def __init__(self, sources: Sources, operator: Operator) -> None:
        self._sources, self._operator = sources, operator

    def index(self, request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        return PlainTextResponse(_LINKS)

    def healthz(self, request: Request) -> Response:
        """Answer 200 while ticks advance, else 503: liveness, not the fleet's health."""
        Query.of(request.query_params.multi_items(), ())
        alive = self._sources.alive()
        return _json({"version": VERSION, "alive": alive}, 200 if alive else 503)

    def metrics(self, _request: Request) -> Response:
        return Response(render(self._sources.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def health(self, request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        return _json(rows.health(self._sources.view(), self._sources.ledger(), self._sources.faults()))

    def nodes(self, request: Request) -> Response:
        query, view = Query.of(request.query_params.multi_items(), _PAGED), self._sources.view()
        opened = view.open_by_node()
        page = query.page(
            view.nodes.values(),
            lambda fact: (fact.node,),
            lambda shown: [rows.node(fact, opened.get(fact.node, 0)) for fact in shown],
        )
        return _json(page)

    def jobs(self, request: Request) -> Response:
        """List training jobs, running ones first."""
        query, view = Query.of(request.query_params.multi_items(), _PAGED), self._sources.view()
        opened = view.open_by_job()
        page = query.page(
            view.jobs,
            lambda one: (one.state != "running", one.job),
            lambda shown: [rows.job(one, opened.get(one.job, [])) for one in shown],
        )
        return _json(page)

    def ask_save(self, request: Request) -> Response:
        """Ask a job for a checkpoint; the next tick answers. 409 with the reason where it is not asked."""
        Query.of(request.query_params.multi_items(), ())
        person = self._operator.permit(request, "operator")
        if isinstance(person, Response):
            return person
        return self._asked(self._sources.ask(request.path_params["job"], person.name))

    def ask_restart(self, request: Request) -> Response:
        """Ask a job's launchers to restart it; `force=1` also one that makes steps. Answers as ask_save."""
        query = Query.of(request.query_params.multi_items(), ("force",))
        force = query.choice("force", ("0", "1")) == "1"
        person = self._operator.permit(request, "operator")
        if isinstance(person, Response):
            return person
        return self._asked(self._sources.ask(request.path_params["job"], person.name, "restart", force=force))

    def _asked(self, future: Future[SaveRequest]) -> Response:
        try:
            found = future.result(timeout=_ASK_S)
        except RefusedError as refused:
            return _json(
                {"error": {"field": "job", "expected": "a job that can be asked", "got": str(refused)}}, 409
            )
        except TimeoutError:
            return _json({"error": {"field": "brain", "expected": "a tick", "got": "none in time"}}, 503)
        return _json({"version": VERSION, **rows.save(found)}, 202)

    def saves(self, request: Request) -> Response:
        """List the requests for checkpoints, newest first."""
        query, view = Query.of(request.query_params.multi_items(), _PAGED), self._sources.view()
        page = query.page(
            view.saves, lambda one: (-one.asked_ns, one.id), lambda shown: [rows.save(one) for one in shown]
        )
        return _json(page)

    def save(self, request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        for one in self._sources.view().saves:
            if one.id == request.path_params["id"]:
                return _json({"version": VERSION, **rows.save(one)})
        raise HTTPException(404)

    def remediation(self, request: Request) -> Response:
        """Say how repair stands."""
        Query.of(request.query_params.multi_items(), ())
        return _json(repair_rows.remediation(self._sources.view().repair))

    def cases(self, request: Request) -> Response:
        """List the cases of repair, newest first."""
        query = Query.of(request.query_params.multi_items(), _PAGED)
        page = query.page(
            self._sources.view().repair.cases, lambda one: (-one.opened_ns, one.id),
            lambda shown: [repair_rows.case(one) for one in shown],
        )  # fmt: skip
        return _json(page)

    def actions(self, request: Request) -> Response:
        """List what was decided and done, newest first."""
        query, view = Query.of(request.query_params.multi_items(), _PAGED), self._sources.view().repair
        page = query.page(
            view.actions, lambda one: (-one.decided_ns, one.proposal.id),
            lambda shown: [repair_rows.action(one, view.verdicts.get(one.proposal.id)) for one in shown],
        )  # fmt: skip
        return _json(page)

    def action(self, request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        view = self._sources.view().repair
        for one in view.actions:
            if one.proposal.id == request.path_params["id"]:
                row = repair_rows.action(one, view.verdicts.get(one.proposal.id))
                return _json({"version": VERSION, **row})
        raise HTTPException(404)

    def goodput(self, request: Request) -> Response:
        """List what the jobs' time went into, newest jobs first."""
        query, view = Query.of(request.query_params.multi_items(), _PAGED), self._sources.view()
        page = query.page(
            view.goodput,
            lambda one: (-one.began_ns, one.job),
            lambda shown: [rows.goodput(one) for one in shown],
        )
        return _json(page)

    def goodput_of(self, request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        name = request.path_params["job"]
        for one in self._sources.view().goodput:
            if one.job == name:
                return _json({"version": VERSION, **rows.goodput(one)})
        raise HTTPException(404)

    def gpus(self, request: Request) -> Response:
        query, view = Query.of(request.query_params.multi_items(), _PAGED), self._sources.view()
        every = [(fact.node, gpu) for fact in view.nodes.values() for gpu in fact.gpus]
        page = query.page(
            every, lambda row: (row[0], row[1].index, row[1].uuid), lambda shown: rows.gpus(shown, view)
        )
        return _json(page)

    def incidents(self, request: Request) -> Response:
        """List incidents, newest first."""
        query = Query.of(request.query_params.multi_items(), (*_PAGED, "state", "since_ns"))
        state = query.choice("state", ("open", "resolved", "all"))
        since_ns, view = query.time_ns("since_ns"), self._sources.view()
        known = {"open": view.open, "resolved": view.resolved, "all": {**view.resolved, **view.open}}[state]
        page = query.page(
            [one for one in known.values() if one.opened_ns >= since_ns],
            lambda one: (-one.opened_ns, one.id),
            lambda shown: [rows.incident(one, view) for one in shown],
        )
        return _json(page)

    def incident(self, request: Request) -> Response:
        Query.of(request.query_params.multi_items(), ())
        view, id_ = self._sources.view(), request.path_params["id"]
        one: Incident | None = view.open.get(id_) or view.resolved.get(id_)
        if one is None:
            raise HTTPException(404)
        return _json(rows.incident_whole(one, view, self._sources.journal(one.id)))

    def ledger(self, request: Request) -> Response:
        query = Query.of(request.query_params.multi_items(), _PAGED)
        rows_ = self._sources.ledger()
        return _json(query.page(rows_, lambda row: (row["node"], row["boot_id"], row["class"]), list))


def _json(body: Json, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _bad_query(_request: Request, error: Exception) -> Response:
    body: Any = getattr(error, "body", {})
    return _json(body, 400)


def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    expected = "a path that / lists" if status == 404 else "GET"
    return _json({"error": {"field": "path", "expected": expected, "got": "something else"}}, status)


def _journal_error(_request: Request, error: Exception) -> Response:
    log.get("web").warning("journal_unreadable", error=str(error))
    return _json({"error": {"field": "journal", "expected": "a readable journal", "got": "an error"}}, 503)


def _bug(request: Request, _error: Exception) -> Response:
    """Answer a bug of ours without its traceback; the server logs it."""
    log.get("web").error("request_failed", path=request.url.path[:200])
    return _json({"error": {"field": "server", "expected": "an answer", "got": "a bug, see the log"}}, 500)
