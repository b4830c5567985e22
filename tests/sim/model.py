"""Models of what stands around the kernel: collectors that see and act, a policy that asks right and wrong.

A plain executor of our own making: it writes down what it means to do, has the effect some seconds later, and
loses answers. None of the product's executor is used.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from gpuvigil_collector.action import FleetState, Limits, Past, Proposal, Signal
from gpuvigil_collector.safety_facts import Inventory

from .world import HOUR, LEASE_S, SECOND, Clock, Job, World

ORIGINS = ("driver", "host", "fabric", "scheduler", "peers", "job", "agent", "statistics")
KINDS = ("checkpoint", "hold", "stop_job", "move_job", "reset_gpu", "reboot", "validate", "release")
NO_TARGETS = ("", "*", ".*", "n*", "n[0-9]+", "None", "null", "all", "n0,n1", "n999999", " n0", None)
SPOILS = (
    {"mode": None},
    {"paused": None},
    {"nodes": None},
    {"jobs": None},
    {"past": None},
    {"actionable": None},
    {"breaker_ns": None},
    {"others": None},
    {"fence": None},
    {"limits": None},
    {"partition_modes": None},
    {"jumped_ns": None},
    {"breaker_ns": -1},
    {"mode": "acts"},
    {"nodes": {}},
    {"past": ("lost",)},
    {"actionable": (("n999999", 1),)},
    {"limits": Limits(storm_share=1.5)},
    {"limits": Limits(domain_pause_s=-1)},
)


@dataclass(slots=True)
class Case:
    """One incident's repair, as far as it came."""

    id: str
    node: str
    evidence: tuple[Signal, ...]
    repaired: bool = False
    validated: bool = False
    asked: int = 0


@dataclass(slots=True)
class Journal:
    """What all collectors share: intents, cases, limits."""

    past: list[Past] = field(default_factory=list)
    cases: dict[str, Case] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    number: int = 0

    def close(self, node: str) -> None:
        """A hold of ours is taken back."""
        self.past = [
            replace(each, open=False) if each.node == node and each.open else each for each in self.past
        ]
        self.cases.pop(node, None)


@dataclass(slots=True)
class Collector:
    """One collector: its clock, and what it saw by it. lagging: marks of ours whose answer was lost."""

    name: str
    clock: Clock
    stamps: list[tuple[str, int, int]] = field(default_factory=list)
    lagging: set[str] = field(default_factory=set)

    def see(self, node: str, now: int) -> None:
        """Stamp a finding by one's own clock."""
        self.stamps.append((node, now + self.clock.off, now))

    def view(self, world: World, journal: Journal) -> FleetState:
        """What it knows of the fleet; nothing is spoilt here but what a lost answer hides."""
        nodes = world.node_states()
        for name in self.lagging:
            if nodes[name].hold == "ours":
                nodes[name] = replace(nodes[name], hold="none")
        self.stamps = [each for each in self.stamps if world.now - each[2] < HOUR]
        return FleetState(
            mode=world.mode,
            partition_modes=world.partition_modes,
            paused="by ann" if world.paused else "",
            nodes=Inventory(nodes) if len(nodes) > 500 else nodes,
            jobs=world.job_states(),
            past=tuple(journal.past),
            actionable=tuple((node, at) for node, at, _ in self.stamps),
            breaker_ns=world.tripped,
            others=world.others,
            fence=world.lease.fence(self.name, world.now + self.clock.off, world.now),
            limits=journal.limits,
            jumped_ns=self.clock.leapt(world.now),
        )


def spoilt(rng: random.Random, state: FleetState, clock_ns: int) -> FleetState:
    """Return the state with one thing missing, malformed or of the future."""
    way = rng.randrange(len(SPOILS) + 4)
    if way < len(SPOILS):
        return replace(state, **SPOILS[way])
    nodes = dict(state.nodes)
    name = rng.choice(list(nodes))
    if way == len(SPOILS):
        bad = {"gpus": -1, "hold": None, "maintenance": None, "silent": None, "jobs": None, "domain": None}
        field_of = rng.choice(list(bad))
        return replace(state, nodes=nodes | {name: replace(nodes[name], **{field_of: bad[field_of]})})
    if way == len(SPOILS) + 1:
        late = Past(
            id="late", kind="hold", node=name, domain="", partition="", job="", gpus=0, at_ns=clock_ns + 1
        )
        return replace(state, past=(*state.past, late))
    if way == len(SPOILS) + 2:
        return replace(state, actionable=(*state.actionable, (name, clock_ns + 1)))
    return replace(state, breaker_ns=clock_ns)


def signal(rng: random.Random, clock_ns: int, **fields: object) -> Signal:
    """Return a signal of any origin."""
    given = {"origin": rng.choice(ORIGINS), "rule": f"r{rng.randrange(5)}", "start_ns": clock_ns - SECOND}
    return Signal(**(given | fields))


def proposal(journal: Journal, case: Case, kind: str, clock_ns: int, job: Job | None, gpus: int) -> Proposal:
    """Return the step of a case that a good policy would ask for."""
    journal.number += 1
    case.asked += 1
    evidence = tuple(replace(each, start_ns=clock_ns - SECOND) for each in case.evidence)
    return Proposal(
        id=f"{case.id}/{kind}/{journal.number}",
        case=case.id,
        incident=case.id,
        fault_class="gpu_lost",
        playbook="p",
        step=case.asked,
        kind=kind,
        node=case.node,
        reason="r",
        gpus=gpus,
        job=job.name if job else "",
        gpu=f"GPU-{case.node}" if kind == "reset_gpu" else "",
        evidence=evidence,
    )


def next_kind(world: World, case: Case) -> tuple[str, Job | None]:
    """Say what a case needs now: hold, save, move what runs, repair, validate, release."""
    only_jobs = {each.origin for each in case.evidence} == {"job"}
    if world.nodes[case.node].mark != "ours" and not only_jobs:
        return "hold", None
    for name in world.on.get(case.node, ()):
        job = world.jobs[name]
        if job.live and job.checkpoint not in ("saved", "impossible"):
            return "checkpoint", job
        return (world.rng.choice(("move_job", "stop_job")) if job.live else "move_job"), job
    if not case.repaired:
        return world.rng.choice(("reset_gpu", "reboot")), None
    return ("release" if case.validated else "validate"), None


def wild(rng: random.Random, world: World, asked: Proposal, past: list[Past], clock_ns: int) -> Proposal:
    """Return the proposal of a policy that is wrong in one thing."""
    job, node = rng.choice([*world.jobs, "", "*", "none", "j99"]), rng.choice(list(world.nodes))
    ways = (
        {"node": rng.choice(NO_TARGETS)},
        {"job": job},
        {"evidence": ()},
        {"approved_by": rng.choice((None, 1, True))},
        {"evidence": (signal(rng, clock_ns), signal(rng, clock_ns))},
        {"evidence": (signal(rng, clock_ns, fatal=rng.random() < 0.5),)},
        {"evidence": tuple(signal(rng, clock_ns, origin="statistics", fatal=True) for _ in range(4))},
        {"evidence": tuple(signal(rng, clock_ns, origin=each) for each in ("host", "fabric"))},
        {"evidence": (signal(rng, clock_ns, origin="job"),)},
        {"evidence": (signal(rng, clock_ns, origin="driver", fatal=True, synthetic=True),)},
        {"synthetic": True},
        {"synthetic": True, "evidence": tuple(replace(each, synthetic=True) for each in asked.evidence)},
        {"gpus": 0},
        {"case": f"case-{rng.randrange(10**6)}"},
        {"node": node},
        {"node": node, "kind": rng.choice(KINDS), "job": "", "gpu": ""},
        {
            "kind": rng.choice(("stop_job", "move_job", "checkpoint")),
            "job": job,
            "gpu": "",
            "node": world.jobs[job].nodes[0] if job in world.jobs else node,
            "gpus": 10**3 if rng.random() < 0.2 else 64,
        },
        {"kind": rng.choice(("reboot", "reset_gpu")), "job": "", "gpu": f"GPU-{asked.node}", "gpus": 64},
        {"kind": rng.choice(KINDS)},
        {"kind": "drain"},
        {"gpu": "GPU-x"},
        {"id": rng.choice(past).id if past else asked.id},
    )
    return replace(asked, **rng.choice(ways))


def landing(rng: random.Random) -> int:
    """How long after its verdict an effect happens: the executor gives it less than half a lease."""
    return rng.choice((0, rng.randrange(LEASE_S * SECOND // 2)))


def intent(world: World, asked: Proposal, ends: tuple[str, ...], clock_ns: int) -> Past:
    """Return what is written down before the effect."""
    node = world.nodes.get(asked.node)
    return Past(
        id=asked.id,
        kind=asked.kind,
        node=asked.node,
        domain=node.domain if node else "",
        partition=node.partition if node else "",
        job=asked.job,
        gpus=asked.gpus,
        case=asked.case,
        jobs=ends,
        at_ns=clock_ns,
        open=asked.kind == "hold",
    )
