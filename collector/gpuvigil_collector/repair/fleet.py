"""The fleet as the safety kernel sees it, put together once a tick from what each source last said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from gpuvigil_collector.action import FleetState, JobState, NodeState
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.marks import Marks
from gpuvigil_detectors.base import NodeFact
from gpuvigil_detectors.training.jobs import Job

VIEW_AGE_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenNode:
    """One node as its scheduler tells it; the words are those of action.NodeState."""

    partition: str = ""
    domain: str = ""
    hold: Literal["none", "ours", "foreign"] = "none"
    held_why: str = ""
    maintenance: str = ""
    remediator: str = ""
    protected: str = ""
    dead: bool = False
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerView:
    """What a scheduler told last. others: another remediator whose nodes are not split from ours."""

    at_ns: int
    nodes: Mapping[str, SeenNode]
    jobs: Mapping[str, JobState]
    others: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a state is made of. view: None = no scheduler is configured; its age decides whether it counts.

    domains: failure domain by node, of the site's file. silenced: nodes that Alertmanager silences, and why.
    """

    nodes: Mapping[str, NodeFact]
    jobs: Mapping[str, Job]
    view: SchedulerView | None
    scheduled: bool
    cases: Iterable[Case]
    marks: Marks | None
    domains: Mapping[str, str] = field(default_factory=dict)
    silenced: Mapping[str, str] = field(default_factory=dict)


def with_fleet(base: FleetState, sources: Sources, now_ns: int) -> FleetState:
    """Fill nodes and jobs in. What is not known stays None: a scheduler's word that is missing or old."""
    view = sources.view
    if sources.scheduled and (view is None or now_ns - view.at_ns > VIEW_AGE_MAX_S * 1e9):
        return replace(base, nodes=None, jobs=None)
    if sources.marks is None:
        return replace(base, nodes=None, jobs=None, paused=None, breaker_ns=None)
    jobs = {name: _hooked(job) for name, job in sources.jobs.items()}
    for name, told in (view.jobs if view is not None else {}).items():
        jobs[name] = told
    running: dict[str, list[str]] = {}
    for name, job in jobs.items():
        for node in job.nodes:
            running.setdefault(node, []).append(name)
    held = {case.node for case in sources.cases if case.held}
    nodes = {
        name: _node(fact, sources, running.get(name, []), name in held, sources.marks)
        for name, fact in sources.nodes.items()
    }
    return replace(base, nodes=nodes, jobs=jobs, others=view.others if view is not None else "")


def _node(fact: NodeFact, sources: Sources, jobs: list[str], held: bool, marks: Marks) -> NodeState:
    seen = sources.view.nodes.get(fact.node) if sources.view is not None else None
    if seen is None:
        seen = SeenNode(hold="ours" if held else "none")
    ours = marks.maintenance.get(fact.node)
    return NodeState(
        node=fact.node,
        gpus=len(fact.gpus),
        partition=seen.partition,
        domain=sources.domains.get(fact.node, seen.domain),
        silent=not fact.connected,
        dead=seen.dead,
        maintenance=f"{ours.by}: {ours.why}"
        if ours
        else seen.maintenance or sources.silenced.get(fact.node, ""),
        hold=seen.hold,
        held_why=seen.held_why,
        remediator=seen.remediator,
        protected=seen.protected,
        jobs=tuple(sorted({*jobs, *seen.jobs})),
        gpu_uuids=tuple(gpu.uuid for gpu in fact.gpus),
    )


def _hooked(job: Job) -> JobState:
    """A job as its own ranks tell it: enough where no scheduler is asked."""
    living = job.living
    opted = bool(living) and all(rank.on_request == "save" for rank in living)
    return JobState(
        job=job.name,
        nodes=tuple(sorted({rank.node for rank in living})),
        gpus=max(job.world_size, len(job.ranks)),
        dead=not living or bool(job.parked),
        refusals=() if opted else ("not_opted_in",),
    )
