"""One reading of Slurm: nodes, jobs, reservations and topology, and what the safety kernel takes of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gpuvigil_collector.action import JobState, NodeState
from gpuvigil_collector.slurm import jobs as slurm_jobs
from gpuvigil_collector.slurm import nodes as slurm_nodes
from gpuvigil_collector.slurm import records, topology
from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.jobs import SlurmJob
from gpuvigil_collector.slurm.nodes import SlurmNode


@dataclass(frozen=True, kw_only=True)
class SlurmView:
    """What Slurm said at at_ns. jobs: those that occupy nodes. troubles: sentences for an alert."""

    at_ns: int
    took_s: float
    nodes: Mapping[str, SlurmNode]
    jobs: Mapping[str, SlurmJob]
    troubles: tuple[str, ...] = ()

    @cached_property
    def _sizes(self) -> Counter[str]:
        """Nodes of each partition."""
        return Counter(name for each in self.nodes.values() for name in each.partitions)

    @cached_property
    def _hosts(self) -> slurm_nodes.Hosts:
        """Nodes by the host that they run on."""
        return slurm_nodes.by_host(self.nodes)

    def find(self, node: str) -> SlurmNode | None:
        """Return the node that gpuvigil calls `node`."""
        return slurm_nodes.find(self.nodes, node, self._hosts)

    def partition(self, node: SlurmNode, configured: Sequence[str] = ()) -> str:
        """Return the partition that a node's budgets and mode are taken from, "" where it is in none.

        Of several: the first of `configured` (give the strictest first), else the one with the fewest nodes.
        """
        sizes = self._sizes
        listed = [name for name in configured if name in node.partitions]
        return listed[0] if listed else min(node.partitions, key=lambda name: (sizes[name], name), default="")

    def node_state(self, state: NodeState, configured: Sequence[str] = ()) -> NodeState:
        """Return the kernel's node with what Slurm adds; as it was where Slurm does not know the node."""
        if (found := self.find(state.node)) is None:
            return state
        held = found.hold != "none"
        return replace(
            state,
            partition=self.partition(found, configured) or state.partition,
            domain=found.domain or state.domain,
            maintenance=state.maintenance or found.maintenance,
            dead=state.dead or (state.silent and found.unresponsive),
            hold=found.hold if held else state.hold,
            held_why=found.reason if held else state.held_why,
            jobs=tuple(sorted({*state.jobs, *found.jobs})),
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
