"""The truth of a simulated fleet: nodes, jobs, marks, a lease, and the effects that really happened.

It knows nothing of the kernel's arithmetic. Times are true ns; each collector has a clock of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from gpuvigil_collector.action import Fence, JobState, NodeState

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
BEGIN = 1_800_000_000 * SECOND
LEASE_S = 30


@dataclass(slots=True)
class Node:
    """One true node. mark: who keeps work off it: "", "ours" or "foreign"."""

    name: str
    gpus: int
    partition: str
    domain: str
    silent: bool = False
    dead: bool = False
    maintenance: str = ""
    mark: str = ""
    remediator: str = ""
    protected: str = ""


@dataclass(slots=True)
class Job:
    """One true job."""

    name: str
    nodes: tuple[str, ...]
    gpus: int
    live: bool = True
    checkpoint: str = "none"
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Effect:
    """What really happened: ended are the jobs that ran, with their GPUs."""

    id: str
    case: str
    kind: str
    node: str
    job: str
    at: int
    by: str
    generation: int
    approved: bool
    ended: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Clock:
    """A collector's wall clock: off from true time, and by how much it leapt forward."""

    off: int = 0
    leaps: list[tuple[int, int]] = field(default_factory=list)

    def jump(self, by: int, now: int) -> None:
        """Move the clock; what the monotonic clock sees of it is kept for a day."""
        self.off += by
        if by > 0:
            self.leaps.append((now, by))

    def leapt(self, now: int) -> int:
        """How far it leapt forward within the last day."""
        return sum(by for at, by in self.leaps if now - at < DAY)


@dataclass(slots=True)
class Lease:
    """The lease store's row, and what each collector believes of it."""

    holder: str = ""
    generation: int = 0
    until: int = 0
    believed: dict[str, int] = field(default_factory=dict)
    renewed: dict[str, int] = field(default_factory=dict)

    def renew(self, who: str, clock_ns: int, true_ns: int) -> None:
        """Take or renew by one's own clock, as a compare-and-set would."""
        if self.holder not in ("", who) and clock_ns <= self.until:
            self.believed.pop(who, None)
            return
        self.generation += self.holder != who
        self.holder, self.until = who, clock_ns + LEASE_S * SECOND
        self.believed[who], self.renewed[who] = self.generation, true_ns

    def fence(self, who: str, clock_ns: int, true_ns: int) -> Fence | None:
        """What a collector holds: time left by the monotonic clock, told in its wall clock's time."""
        if who not in self.believed:
            return None
        until = clock_ns + LEASE_S * SECOND - (true_ns - self.renewed[who])
        return Fence(holder=who, generation=self.believed[who], until_ns=until, lease_s=LEASE_S)


class World:
    """A fleet made from one seed; the kernel's nouns of its nodes are made anew where the truth changed."""

    def __init__(self, rng: random.Random, size: int, racks: int, partitions: int) -> None:
        self.rng, self.now = rng, BEGIN
        self.nodes: dict[str, Node] = {}
        self._states: dict[str, NodeState] = {}
        self.jobs: dict[str, Job] = {}
        self.on: dict[str, list[str]] = {}
        self.findings: list[tuple[str, int]] = []
        self.effects: list[Effect] = []
        self.mode, self.paused, self.others = "act", False, ""
        self.partition_modes: dict[str, str] = {}
        self.tripped, self.lease = 0, Lease()
        for i in range(size):
            domain = f"rack{i * racks // size}" if racks > 1 else ""
            self.nodes[f"n{i}"] = Node(f"n{i}", rng.choice((8, 8, 8, 4)), f"p{i % partitions}", domain)

    def touch(self, name: str) -> Node:
        """Return a node that is about to change."""
        self._states.pop(name, None)
        return self.nodes[name]

    def place(self, name: str, count: int) -> None:
        """Start a job on some nodes that take work."""
        free = [n for n, node in self.nodes.items() if not (node.mark or node.maintenance or self.on.get(n))]
        if len(free) >= count:
            where = tuple(self.rng.sample(free, count))
            whole = sum(self.nodes[n].gpus for n in where)
            self.start(Job(name, where, self.rng.choice((1, whole, whole))))

    def start(self, job: Job) -> None:
        """Let a job run."""
        self.jobs[job.name] = job
        for name in job.nodes:
            self.touch(name)
            self.on.setdefault(name, []).append(job.name)

    def end(self, name: str) -> None:
        """Take a job off its nodes."""
        for node in self.jobs.pop(name).nodes:
            self.touch(node)
            self.on[node].remove(name)

    def live_on(self, node: str) -> list[Job]:
        """The jobs that run on a node."""
        return [self.jobs[name] for name in self.on.get(node, ()) if self.jobs[name].live]

    def node_states(self) -> dict[str, NodeState]:
        """The inventory as an honest collector sees it."""
        if len(self._states) < len(self.nodes):
            for name in self.nodes.keys() - self._states.keys():
                self._states[name] = self._state(self.nodes[name])
        return dict(self._states)

    def _state(self, node: Node) -> NodeState:
        return NodeState(node=node.name, gpus=node.gpus, partition=node.partition, domain=node.domain,
                         silent=node.silent, dead=node.dead, maintenance=node.maintenance,
                         hold={"": "none"}.get(node.mark, node.mark), remediator=node.remediator,
                         protected=node.protected, jobs=tuple(self.on.get(node.name, ())),
                         gpu_uuids=(f"GPU-{node.name}",))  # fmt: skip

    def job_states(self) -> dict[str, JobState]:
        """The jobs as an honest collector sees them."""
        return {
            job.name: JobState(job=job.name, nodes=job.nodes, gpus=job.gpus, dead=not job.live,
                               checkpoint=job.checkpoint, refusals=job.refusals)
            for job in self.jobs.values()
        }  # fmt: skip

    def happen(self, effect: Effect) -> None:
        """Let an effect change the truth."""
        self.effects.append(effect)
        node = self.touch(effect.node)
        if effect.kind in ("hold", "release"):
            node.mark = "ours" if effect.kind == "hold" else ""
        if effect.kind == "checkpoint":
            self.jobs[effect.job].checkpoint = self.rng.choice(("saved", "saved", "impossible", "pending"))
        if effect.kind in ("move_job", "stop_job"):
            old = self.jobs[effect.job]
            if effect.kind == "stop_job":
                old.live = False
            else:
                self.end(effect.job)
                self.place(effect.job, len(old.nodes))
        if effect.kind in ("reset_gpu", "reboot"):
            for name, _ in effect.ended:
                self.jobs[name].live = False
