"""From a case's step to what the kernel is asked: the proposal, and the fleet as this case knows it."""

from __future__ import annotations

from dataclasses import replace

from gpuvigil_collector.action import ON_JOB, FleetState, JobState, Proposal
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.policy import Step
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.evidence import signals_of


def with_case(state: FleetState, case: Case) -> FleetState:
    """Return the fleet with a case's own knowledge of checkpoints."""
    if state.jobs is None or not case.jobs:
        return state
    jobs: dict[str, JobState] = dict(state.jobs)
    for name, checkpoint in case.jobs.items():
        if name in jobs:
            jobs[name] = replace(jobs[name], checkpoint=checkpoint)
    return replace(state, jobs=jobs)


def proposal_of(case: Case, step: Step, job: str, state: FleetState, incident: Incident | None) -> Proposal:
    """Return what a step asks for. The case remembers the evidence of an incident that has gone since."""
    if incident is not None:
        case.evidence = list(signals_of(incident.findings))
    known = state.nodes.get(case.node) if state.nodes is not None else None
    affected = state.jobs.get(job) if job and state.jobs is not None else None
    gpus = affected.gpus if affected is not None else known.gpus if known is not None else 0
    return Proposal(
        id=case.action_id(step.do, job), case=case.id, incident=case.incident, fault_class=case.fault_class,
        playbook=case.playbook, step=case.step, kind=step.do, node=case.node, reason=case.cause,
        gpu=case.gpu if step.do == "reset_gpu" else "", job=job if step.do in ON_JOB else "",
        gpus=1 if step.do == "reset_gpu" else gpus, deadline_s=float(step.within),
        evidence=tuple(case.evidence), synthetic=case.synthetic,
    )  # fmt: skip
