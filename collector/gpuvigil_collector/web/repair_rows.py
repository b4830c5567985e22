"""The API's rows of repair: cases, actions with every gate's word, and how the whole stands."""

from __future__ import annotations

from typing import Any

import msgspec

from gpuvigil_collector.action import Action, Verdict
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.marks import Until
from gpuvigil_collector.repair.stage import RepairView
from gpuvigil_collector.repair.walk import last_sign_ns

Json = dict[str, Any]


def remediation(view: RepairView) -> Json:
    """How repair stands: mode, pause, breaker, lease, what waits for a person, maintenance."""
    marks, fence = view.marks, view.fence
    waiting = [action.proposal.id for action in view.actions if action.state == "awaiting"]
    return {
        "version": 1,
        "mode": view.mode,
        "fault": view.fault or None,
        "readable": marks is not None,
        "paused": _until(marks.paused) if marks is not None and marks.paused is not None else None,
        "breaker_tripped_ns": marks.breaker_ns or None if marks is not None else None,
        "lease": {"holder": fence.holder, "generation": fence.generation} if fence is not None else None,
        "awaiting_approval": waiting,
        "cases_running": sum(not one.ended for one in view.cases),
        "nodes_held": sorted({one.node for one in view.cases if one.held}),
        "maintenance": {
            node: _until(until) for node, until in (marks.maintenance if marks is not None else {}).items()
        },
    }


def case(one: Case) -> Json:
    """One row of /cases."""
    return {
        "id": one.id, "incident": one.incident, "class": one.fault_class, "node": one.node,
        "target": one.target, "playbook": one.playbook, "opened_ns": one.opened_ns, "step": one.step,
        "waits": one.waits or None, "denied_by": one.denied_by or None, "held": one.held,
        "jobs": dict(one.jobs), "moved": list(one.moved), "action": one.action or None,
        "outcome": one.outcome or None, "ended_ns": one.ended_ns or None, "synthetic": one.synthetic,
        "trail": msgspec.to_builtins(one.trail),
    }  # fmt: skip


def action(one: Action, verdict: Verdict | None) -> Json:
    """One row of /actions, with each gate's word where it is still known."""
    proposal = one.proposal
    gates = [] if verdict is None else msgspec.to_builtins(verdict.gates)
    return {
        "id": proposal.id, "case": proposal.case, "incident": proposal.incident, "kind": proposal.kind,
        "class": proposal.fault_class, "node": proposal.node, "gpu": proposal.gpu or None,
        "job": proposal.job or None, "reason": proposal.reason, "state": one.state, "attempt": one.attempt,
        "generation": one.generation, "outcome": one.outcome, "decided_ns": one.decided_ns,
        "changed_ns": one.changed_ns, "approved_by": proposal.approved_by or None,
        "synthetic": proposal.synthetic, "denied_by": verdict.gate or None if verdict else None,
        "gates": gates,
    }  # fmt: skip


def state_of(incident: Incident, view: RepairView) -> str:
    """The state of an incident as people see it; relapsed: it shows again on a node that we returned."""
    mine = [one for one in view.cases if one.incident == incident.id]
    running = [one for one in mine if not one.ended and one.held | bool(one.action)]
    if running:
        validating = running[-1].clean_until_ns or running[-1].action.endswith("-validate")
        return "validating" if validating else "remediating"
    if incident.state == "resolved":
        return "resolved"
    marks = view.marks
    if marks is not None and incident.fingerprint in marks.acknowledged:
        return "acknowledged"
    same = [one for one in view.cases if one.fingerprint == incident.fingerprint]
    shown_ns = last_sign_ns(incident, incident.seen_ns)
    if any(one.outcome == "returned" and one.ended_ns < shown_ns for one in same):
        return "relapsed"
    return "open"


def _until(until: Until) -> Json:
    found: Json = msgspec.to_builtins(until)
    return found
