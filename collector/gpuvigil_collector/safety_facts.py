"""What the safety kernel reads, checked as it is read: nothing here decides.

Each reader returns a sane value or raises Unknown, whose text says what is missing, malformed or contradicts
itself. Only safety.py and safety_budgets.py use it; it has no clock and no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from .action import INTERRUPTS, ON_JOB, FleetState, JobState, Kind, Mode, NodeState, Proposal
from .safety_values import SECOND_NS, Unknown, count, shown, text

KINDS: Final[frozenset[str]] = frozenset(get_args(Kind))
MODES: Final[tuple[str, ...]] = get_args(Mode)  # from the most cautious on
_HOLDS = ("none", "ours", "foreign")
_CHECKPOINTS = ("none", "pending", "saved", "impossible")


def _texts(many: object) -> bool:
    return type(many) is tuple and all(type(each) is str for each in many)


def _node_flaw(name: object, node: NodeState) -> str:
    if type(name) is not str or type(node) is not NodeState or node.node != name:
        return f"node {shown(name)} is another node or none"
    if type(node.gpus) is not int or node.gpus < 0:
        return f"node {name}: gpus is malformed"
    words = (node.partition, node.domain, node.maintenance, node.held_why, node.remediator, node.protected)
    if any(type(word) is not str for word in words) or node.hold not in _HOLDS:
        return f"node {name}: hold or a text is malformed"
    if type(node.silent) is not bool or type(node.dead) is not bool:
        return f"node {name}: silent or dead is malformed"
    return (
        "" if _texts(node.jobs) and _texts(node.gpu_uuids) else f"node {name}: jobs or gpu_uuids is malformed"
    )


class Inventory(Mapping[str, NodeState]):
    """The registered nodes: copied, checked and counted once, for many decisions on one state.

    A caller that asks often on the same nodes gives FleetState an Inventory; any other mapping is read anew
    for each decision (about 10 ms for 10,000 nodes). flaw: what is wrong with it, "" for nothing. silent:
    nodes without a word and without maintenance. Never changes.
    """

    __slots__ = ("_nodes", "domains", "flaw", "gpus", "ours", "partitions", "silent")

    def __init__(self, nodes: Mapping[str, NodeState]) -> None:
        """Copy and count. Never raises for malformed nodes: they are the flaw."""
        self._nodes = dict(nodes)
        self.flaw = next(filter(None, (_node_flaw(*item) for item in self._nodes.items())), "")
        sane = () if self.flaw else self._nodes.values()
        self.gpus = sum(node.gpus for node in sane)
        self.silent = sum(node.silent and not node.maintenance for node in sane)
        self.ours = frozenset(node.node for node in sane if node.hold == "ours")
        self.partitions = Counter(node.partition for node in sane)
        self.domains = Counter(node.domain for node in sane)

    def __getitem__(self, name: str) -> NodeState:
        return self._nodes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def inventory_of(state: FleetState) -> Inventory | None:
    """Return the state's nodes counted, None when they are not known."""
    nodes = getattr(state, "nodes", None)
    if type(nodes) is Inventory:
        return nodes
    return Inventory(nodes) if isinstance(nodes, Mapping) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One proposal before one state at one time, with the readers that the gates share."""

    state: FleetState
    proposal: Proposal
    now_ns: int
    inventory: Inventory | None

    @property
    def kind(self) -> str:
        """The proposal's kind, "" for one that is none."""
        kind = getattr(self.proposal, "kind", None)
        return kind if type(kind) is str and kind in KINDS else ""

    @property
    def now(self) -> int:
        """Now, in ns; raises Unknown when it is no time."""
        return count(self.now_ns, "the time", 1)

    @property
    def fleet(self) -> Inventory:
        """The inventory; raises Unknown when it is missing or malformed."""
        if self.inventory is None:
            raise Unknown("the inventory is not known")
        if self.inventory.flaw:
            raise Unknown(f"the inventory is malformed: {self.inventory.flaw}")
        return self.inventory

    @property
    def node(self) -> NodeState:
        """The target's node; raises Unknown when the inventory does not have it."""
        name = text(self.proposal.node, "the target's node")
        if name not in self.fleet:
            raise Unknown(f"the inventory has no node {shown(name)}")
        return self.fleet[name]

    def since(self, seconds: float) -> int:
        """Where a window of so many seconds begins; what lies after it counts."""
        leap = count(self.state.jumped_ns, "the clock's leap")
        return self.now - int(seconds * SECOND_NS) - leap

    def job(self, name: str) -> JobState:
        """One job, checked against the inventory; raises Unknown."""
        if not isinstance(self.state.jobs, Mapping):
            raise Unknown("the jobs are not known")
        job = self.state.jobs.get(text(name, "a job's name"))
        if type(job) is not JobState or job.job != name:
            raise Unknown(f"job {shown(name)} is not known")
        count(job.gpus, f"job {name}: gpus")
        if type(job.dead) is not bool or job.checkpoint not in _CHECKPOINTS:
            raise Unknown(f"job {name}: dead or checkpoint is not known")
        if not _texts(job.nodes) or not _texts(job.refusals):
            raise Unknown(f"job {name}: nodes or refusals is malformed")
        lost = [node for node in job.nodes if node not in self.fleet]
        if lost:
            raise Unknown(f"job {name}: the inventory has no node {shown(lost[0])}")
        if job.gpus > sum(self.fleet[node].gpus for node in job.nodes):
            raise Unknown(f"job {name}: {job.gpus} GPUs are more than its nodes have")
        return job

    def live_on_node(self) -> tuple[JobState, ...]:
        """The running jobs of the target's node; raises Unknown where node and jobs do not agree."""
        here = self.node
        listed = [self.job(name) for name in here.jobs]
        for job in (self.state.jobs or {}).values():
            if here.node in job.nodes and not job.dead and job.job not in here.jobs:
                raise Unknown(
                    f"job {shown(job.job)} says that it runs on {here.node}, which does not know it"
                )
        for job in listed:
            if not job.dead and here.node not in job.nodes:
                raise Unknown(f"{here.node} says that job {job.job} runs there, which does not know it")
        return tuple(job for job in listed if not job.dead)

    def interrupted(self) -> tuple[JobState, ...]:
        """The running jobs that the proposal ends; raises Unknown."""
        if self.kind not in INTERRUPTS:
            return ()
        if self.kind not in ON_JOB:
            return self.live_on_node()
        job = self.job(self.proposal.job)
        if not job.dead and job.job not in self.node.jobs:
            raise Unknown(f"{self.node.node} does not know of job {job.job}")
        return () if job.dead else (job,)

    def touched(self) -> tuple[NodeState, ...]:
        """The target's node and those of each job that the proposal ends or moves; raises Unknown."""
        jobs = {job.job: job for job in self.interrupted()}
        if self.kind in INTERRUPTS & ON_JOB:
            jobs[self.proposal.job] = self.job(self.proposal.job)
        others = {name for job in jobs.values() for name in job.nodes} - {self.node.node}
        return (self.node, *(self.fleet[name] for name in sorted(others)))

    def around(self) -> tuple[NodeState, ...]:
        """As `touched`, as far as it is known: what is not is another gate's to deny."""
        try:
            return self.touched()
        except Unknown:
            known = self.proposal.node in self.fleet
            return (self.fleet[self.proposal.node],) if known else ()
