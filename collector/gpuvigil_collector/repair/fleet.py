"""The fleet as the safety kernel sees it, put together once a tick from what each source last said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gpuvigil_collector.action import FleetState, JobState, NodeState
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.marks import Marks
from gpuvigil_collector.safety_facts import Inventory
from gpuvigil_detectors.base import NodeFact
from gpuvigil_detectors.training.jobs import Job

VIEW_AGE_MAX_S: Final = 60.0
_POD: Final = re.compile(r"pod([0-9a-f][0-9a-f_-]{31,})(?:\.slice)?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerView:
    """What a scheduler told last.

    adds: fills a node's state with what the scheduler says of it; as it was for a node that it does not know.
    jobs: those that it runs, by name: what it can move. others: another remediator whose nodes are not split
    from ours. paused: a pause that was made there, "" for none. pods: the job of each pod uid without dashes.
    """

    at_ns: int
    adds: Callable[[NodeState], NodeState]
    jobs: Mapping[str, JobState]
    others: str = ""
    paused: str = ""
    pods: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a state is made of. view: None = no scheduler is configured; its age decides whether it counts.

    domains: failure domain by node, of the site's file. silenced: nodes that Alertmanager silences, and why;
    None: that is not known.
    """

    nodes: Mapping[str, NodeFact]
    jobs: Mapping[str, Job]
    view: SchedulerView | None
    scheduled: bool
    cases: Iterable[Case]
    marks: Marks | None
    domains: Mapping[str, str] = field(default_factory=dict)
    silenced: Mapping[str, str] | None = field(default_factory=dict)


def with_fleet(base: FleetState, sources: Sources, now_ns: int) -> FleetState:
    """Fill nodes and jobs in. What is not known stays None: a scheduler's word that is missing or old."""
    view, marks = sources.view, sources.marks
    if sources.scheduled and (view is None or now_ns - view.at_ns > VIEW_AGE_MAX_S * 1e9):
        return replace(base, nodes=None, jobs=None)
    if marks is None:
        return replace(base, nodes=None, jobs=None, paused=None, breaker_ns=None)
    if sources.silenced is None:
        return replace(base, nodes=None, jobs=None)
    joined = joined_jobs(sources.jobs, view.pods) if view is not None else {}
    hooked = {name: _hooked(job) for name, job in sources.jobs.items() if name not in joined}
    processes = {told: name for name, told in joined.items()}
    running: dict[str, list[str]] = {}
    for name, job in hooked.items():
        for node in job.nodes:
            running.setdefault(node, []).append(name)
    held = {case.node for case in sources.cases if case.held}
    nodes = Inventory(
        {
            name: _node(fact, sources, tuple(running.get(name, ())), name in held, marks)
            for name, fact in sources.nodes.items()
        }
    )
    told = view.jobs if view is not None else {}
    places: dict[str, list[str]] = {}
    for node, state in nodes.items():
        for name in state.jobs:
            places.setdefault(name, []).append(node)
    jobs = hooked | {
        name: replace(_placed(job, places.get(job.job, [])), processes=processes.get(name, ""))
        for name, job in told.items()
    }
    others, paused = (view.others, view.paused) if view is not None else ("", "")
    paused_too = base.paused if base.paused is None or base.paused else paused
    return replace(base, nodes=nodes, jobs=jobs, others=others, paused=paused_too)


def joined_jobs(jobs: Mapping[str, Job], pods: Mapping[str, str]) -> dict[str, str]:
    """Return the scheduler's name of each job whose ranks all live in pods of that one job, of no other's.

    The node's kernel says in which pod a process is. Where two jobs share a scheduler's job both stay apart.
    """
    found = {}
    for name, job in jobs.items():
        ranks = job.living or list(job.ranks.values())
        owners = {pods.get(_pod(rank.workload), "") for rank in ranks} if pods else set()
        if len(owners) == 1 and "" not in owners:
            found[name] = owners.pop()
    shared = Counter(found.values())
    return {name: told for name, told in found.items() if shared[told] == 1}


def _pod(workload: str) -> str:
    """Return the pod uid without dashes that a control group names, "" for none."""
    match = _POD.search(workload)
    return re.sub("[_-]", "", match[1]) if match else ""


def _node(fact: NodeFact, sources: Sources, jobs: tuple[str, ...], held: bool, marks: Marks) -> NodeState:
    ours = marks.maintenance.get(fact.node)
    state = NodeState(
        node=fact.node,
        gpus=len(fact.gpus),
        domain=sources.domains.get(fact.node, ""),
        silent=not fact.connected,
        maintenance=f"{ours.by}: {ours.why}" if ours else (sources.silenced or {}).get(fact.node, ""),
        hold="ours" if held and sources.view is None else "none",
        jobs=jobs,
        gpu_uuids=tuple(gpu.uuid for gpu in fact.gpus),
    )
    return sources.view.adds(state) if sources.view is not None else state


def _placed(job: JobState, ours: list[str]) -> JobState:
    """Name a scheduler's job's nodes as we do; those that we do not know keep the scheduler's name."""
    return replace(job, nodes=tuple(ours)) if len(ours) >= len(job.nodes) else job


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
