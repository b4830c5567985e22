"""The API's rows: facts and incidents as JSON objects of version 1."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

from gpuvigil_collector.export.jobs import JobView
from gpuvigil_collector.export.view import View, health_detail, notes
from gpuvigil_collector.goodput.report import GoodputView
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.saves.request import SaveRequest
from gpuvigil_collector.topology import Topology
from gpuvigil_collector.web.repair_rows import action, case, state_of
from gpuvigil_detectors.base import Finding, GpuFact, NodeFact
from gpuvigil_protos import entity as names
from gpuvigil_protos.catalog import CATALOG

Json = dict[str, Any]
_GPU_METRICS: Final = tuple(metric.name for metric in CATALOG.values() if metric.entity_kind == "gpu")
_SIMILAR_MAX: Final = 5
_AGE_MAX_S: Final = 90.0  # the slowest GPU group comes once a minute; older is absent, not old


def health(view: View, ledger: list[Json], faults: list[str]) -> Json:
    """Tell how the collector itself does: ok, learning or degraded, and why."""
    wrong = health_detail(view, ledger, faults)
    until_ns = view.learning_until_ns
    return {
        "version": 1,
        "state": "degraded" if wrong else "learning" if until_ns is not None else "ok",
        "learning_until_ns": until_ns,
        "started_ns": view.started_ns,
        "now_ns": view.now_ns,
        "nodes": len(view.nodes),
        "nodes_up": sum(fact.connected for fact in view.nodes.values()),
        "gpus": Topology(view.nodes).gpus_total(),
        "incidents_open": len(view.open),
        "jobs_running": sum(job.state == "running" for job in view.jobs),
        "detail": wrong + notes(view, ledger),
    }


def job(one: JobView, incidents: list[str]) -> Json:
    """One row of /jobs, with the ids of the open incidents about it."""
    return msgspec.to_builtins(one) | {"incidents": incidents}  # type: ignore[no-any-return]


def node(fact: NodeFact, incidents_open: int) -> Json:
    """One row of /nodes."""
    return {
        "node": fact.node,
        "state": "up" if fact.connected else "silent",
        "gpus": sum(gpu.seen for gpu in fact.gpus),
        "gpus_expected": len(fact.gpus),
        "last_seen_ns": fact.last_seen_ns,
        "agent_version": fact.agent_version,
        "gpu_source": fact.gpu_source,
        "note": fact.note,
        "driver_version": fact.driver_version,
        "incidents_open": incidents_open,
    }


def gpus(shown: list[tuple[str, GpuFact]], view: View) -> list[Json]:
    """Rows of /gpus, with the newest value of every GPU metric; what is old or absent is left out."""
    states = view.gpu_states()
    values = _latest([f"{on}/{names.gpu(gpu.uuid)}" for on, gpu in shown], view)
    return [
        {
            "node": on,
            "gpu": gpu.index,
            "uuid": gpu.uuid,
            "model": gpu.model,
            "pci_bus_id": gpu.pci_bus_id,
            "state": states.get((on, gpu.uuid), "ok") if gpu.seen else "lost",
            "metrics": values[f"{on}/{names.gpu(gpu.uuid)}"],
        }
        for on, gpu in shown
    ]


def _latest(entities: list[str], view: View) -> dict[str, dict[str, float]]:
    wanted: dict[str, dict[str, float]] = {entity: {} for entity in entities}
    if view.snapshot is None:
        return wanted
    rows_of: dict[int, list[int]] = {}  # metrics of one group share their tuple of entities
    for metric in _GPU_METRICS:
        latest = view.snapshot.latest(metric)
        rows = rows_of.get(id(latest.entities))
        if rows is None:
            rows = [row for row, entity in enumerate(latest.entities) if entity in wanted]
            rows_of[id(latest.entities)] = rows
        fresh = np.isfinite(latest.values) & (latest.age_s <= _AGE_MAX_S)
        for row in rows:
            if fresh[row]:
                wanted[latest.entities[row]][metric] = float(latest.values[row])
    return wanted


def incident(one: Incident, view: View) -> Json:
    """One row of /incidents."""
    return {
        "id": one.id,
        "fingerprint": one.fingerprint,
        "class": one.fault_class,
        "scope": one.scope,
        "severity": one.severity,
        "state": state_of(one, view.repair),
        "node": one.node,
        "target": one.target,
        "cause": one.cause,
        "opened_ns": one.opened_ns,
        "seen_ns": one.seen_ns,
        "resolved_ns": one.resolved_ns,
        "findings": len(one.findings),
        "gpus": one.gpus,
        "gpu_hours": round(one.gpu_hours(view.now_ns), 6),
        "synthetic": one.synthetic,
        "merged_into": one.merged_into or None,
    }


def incident_whole(one: Incident, view: View, journal: list[Json]) -> Json:
    """Everything on one incident: findings, cause first, what repair decided, its journal, its like."""
    findings = [finding(found, one.role(found)) for found in one.findings]
    cases = [case(found) for found in view.repair.cases if found.incident == one.id]
    actions = [
        action(found, view.repair.verdicts.get(found.proposal.id))
        for found in view.repair.actions if found.proposal.incident == one.id
    ]  # fmt: skip
    whole = {"findings": findings, "cases": cases, "actions": actions, "similar": similar(one, view)}
    return {"version": 1} | incident(one, view) | whole | {"journal": journal}


def similar(one: Incident, view: View) -> list[Json]:
    """Return other incidents of the same fault, or else of the same class and node, newest first."""
    known = [other for other in (*view.resolved.values(), *view.open.values()) if other.id != one.id]
    same = [other for other in known if other.fingerprint == one.fingerprint] or [
        other for other in known if (other.fault_class, other.node) == (one.fault_class, one.node)
    ]
    newest = sorted(same, key=lambda other: -other.opened_ns)[:_SIMILAR_MAX]
    return [{"id": other.id, "class": other.fault_class, "target": other.target,
             "opened_ns": other.opened_ns, "resolved_ns": other.resolved_ns} for other in newest]  # fmt: skip


def finding(found: Finding, role: str) -> Json:
    """One finding; numbers that are not finite are absent."""
    evidence = msgspec.to_builtins(found.evidence) | {"facts": dict(found.evidence.facts)}
    return {
        "detector": found.detector,
        "rule": found.rule,
        "entity": found.entity,
        "class": found.fault_class,
        "severity": found.severity,
        "role": role,
        "origin": found.origin,
        "start_ns": found.start_ns,
        "end_ns": found.end_ns,
        "sentence": found.sentence,
        "metric": found.metric,
        "score": _finite(found.score),
        "p_value": _finite(found.p_value),
        "notify": found.notify,
        "evidence": {key: _finite(value) for key, value in evidence.items() if _finite(value) is not None},
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def goodput(row: GoodputView) -> Json:
    """One row of /goodput: seconds by bucket, useful share, losses with incidents, checkpoint advice."""
    return {
        "job": row.job, "state": row.state, "began_ns": row.began_ns, "ranks": row.ranks, "nodes": row.nodes,
        "attempts": row.attempts, "step": row.step, "wall_seconds": round(row.wall, 3),
        "seconds": {bucket: round(spent, 3) for bucket, spent in row.buckets.items()},
        "goodput": row.goodput, "goodput_last_hour": row.goodput_lately, "losses": list(row.losses),
        "gpu_hours_lost": row.gpu_hours_lost, "checkpoint": row.checkpoint,
    }  # fmt: skip


def save(request: SaveRequest) -> Json:
    """One row of /saves: who asked for what, what each node answered, and how it ended."""
    return {
        "id": request.id, "kind": request.kind,
        "job": request.job, "by": request.by, "asked_ns": request.asked_ns,
        "deadline_ns": request.deadline_ns, "state": request.state, "detail": request.detail,
        "nodes": dict(request.nodes), "step": request.step, "path": request.path, "bytes": request.size,
        "seconds": request.seconds, "ended_ns": request.ended_ns or None,
    }  # fmt: skip
