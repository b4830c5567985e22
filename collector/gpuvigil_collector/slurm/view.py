"""One reading of Slurm: nodes, jobs, reservations and topology, and what the safety kernel takes of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuvigil_collector.action import JobState
from gpuvigil_collector.repair.fleet import SchedulerView, SeenNode
from gpuvigil_collector.slurm import jobs as slurm_jobs
from gpuvigil_collector.slurm import nodes as slurm_nodes
from gpuvigil_collector.slurm import records, topology
from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.jobs import SlurmJob
from gpuvigil_collector.slurm.nodes import SlurmNode


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmView:
    """What Slurm said at at_ns. jobs: those that occupy nodes. troubles: sentences for an alert."""

    at_ns: int
    took_s: float
    nodes: Mapping[str, SlurmNode]
    jobs: Mapping[str, SlurmJob]
    troubles: tuple[str, ...] = ()

    def find(self, node: str) -> SlurmNode | None:
        """Return the node that gpuvigil calls `node`."""
        return slurm_nodes.find(self.nodes, node)

    def partition(self, node: SlurmNode, configured: Sequence[str] = ()) -> str:
        """Return the partition that a node's budgets and mode are taken from, "" where it is in none.

        Of several: the first of `configured` (give the strictest first), else the one with the fewest nodes.
        """
        sizes = Counter(name for each in self.nodes.values() for name in each.partitions)
        listed = [name for name in configured if name in node.partitions]
        return listed[0] if listed else min(node.partitions, key=lambda name: (sizes[name], name), default="")

    def for_repair(self, nodes: Iterable[str], configured: Sequence[str] = ()) -> SchedulerView:
        """Return what the repair stage takes, by gpuvigil's names of the registered nodes.

        A node that Slurm does not know is left out. Jobs name their nodes as gpuvigil does where it can.
        """
        known = {name: found for name in nodes if (found := self.find(name)) is not None}
        ours = {found.name: name for name, found in known.items()}
        jobs = {
            name: replace(state, nodes=tuple(ours.get(node, node) for node in state.nodes))
            for name in self.jobs
            if (state := self.job_state(name)) is not None
        }
        seen = {name: self._seen(found, configured) for name, found in known.items()}
        return SchedulerView(at_ns=self.at_ns, nodes=seen, jobs=jobs)

    def _seen(self, node: SlurmNode, configured: Sequence[str]) -> SeenNode:
        return SeenNode(
            partition=self.partition(node, configured),
            domain=node.domain,
            hold=node.hold,
            held_why=node.reason if node.hold != "none" else "",
            maintenance=node.maintenance,
            dead=node.unresponsive,
            jobs=node.jobs,
        )

    def job_state(self, job: str) -> JobState | None:
        """Return the kernel's job; None when Slurm has no such job on any node."""
        if (found := self.jobs.get(job)) is None:
            return None
        return JobState(job=job, nodes=found.nodes, gpus=found.gpus, refusals=found.refusals)


def read(client: SlurmClient, now_ns: int, deadline_s: float, opt_in_all: bool = False) -> SlurmView:
    """Read all of Slurm within deadline_s. Raises UnknownError: half a view is no view."""
    began = time.monotonic()

    def left() -> float:
        return deadline_s - (time.monotonic() - began)

    found_nodes, found_jobs = client.nodes(left()), client.jobs(left())
    try:
        reserved = topology.maintenance(client.text("reservation", left()))
        domains, troubles = topology.domains(client.text("topology", left()))
        on_nodes = _by_name(slurm_jobs.read_all(found_jobs, opt_in_all))
    except records.NonsenseError as error:
        raise UnknownError(f"slurm answered nonsense: {error}") from error
    beside: dict[str, list[str]] = {}
    for job in on_nodes.values():
        for node in job.nodes:
            beside.setdefault(node, []).append(job.job)
    return SlurmView(
        at_ns=now_ns,
        took_s=time.monotonic() - began,
        nodes={
            each.name: slurm_nodes.read(
                each,
                reserved.get(each.name, ""),
                domains.get(each.name, ""),
                tuple(sorted(beside.get(each.name, ()))),
            )
            for each in found_nodes
        },
        jobs=on_nodes,
        troubles=troubles,
    )


def _by_name(found: tuple[SlurmJob, ...]) -> Mapping[str, SlurmJob]:
    """The jobs that occupy nodes, by the name that their hooks report."""
    return {job.job: job for job in found if job.on_nodes}
