"""A seeded simulation of fleets in trouble: the kernel decides, the judge counts from outside.

    wrong = run(seed).wrong        # [] for a run in which every promise held

A failure is a seed. What a seed is made of: a pattern of faults, a size, and chaos of some kinds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from gpuvigil_collector.action import Limits, Proposal
from gpuvigil_collector.safety import authorise

from .judge import Judge
from .model import Case, Collector, Journal, intent, landing, next_kind, proposal, signal, spoilt, wild
from .world import DAY, HOUR, MINUTE, SECOND, Clock, Effect, Job, World

PATTERNS = ("single", "all", "waves", "racks", "domain", "jobs", "scattered")
CHAOS = (
    "malformed",
    "foreign",
    "lost answers",
    "clock jumps",
    "partitions",
    "duel",
    "silence",
    "wild",
    "modes",
    "maintenance",
    "others",
)
SIZES = (2, 2, 3, 3, 4, 6, 6, 8, 10, 10, 16, 24, 40)
FLOOR = (2, 3, 6, 10, 100)


@dataclass(slots=True)
class Result:
    """What one seed showed."""

    seed: int
    pattern: str
    size: int
    chaos: tuple[str, ...]
    wrong: list[str]
    asked: int
    effects: int
    repaired: bool
    done: tuple[str, ...]
    denied: dict[str, int] = field(default_factory=dict)


class Sim:
    """One seed's fleet, collectors, judge."""

    def __init__(self, seed: int, pattern: str = "") -> None:
        rng = self.rng = random.Random(seed)
        self.pattern = pattern or rng.choice(PATTERNS)
        kinds = () if self.pattern == "single" else CHAOS
        self.chaos = tuple(kind for kind in kinds if rng.random() < 0.3)
        self.size = rng.choice(FLOOR if self.pattern == "single" else SIZES)
        if self.pattern != "single" and rng.random() < 0.02:
            self.size = rng.choice((100, 100, 100, 300, 300, 1000, 10_000 if rng.random() < 0.1 else 200))
        racks = rng.choice((1, 2, max(2, self.size // 4), self.size))
        self.world = World(rng, self.size, racks, rng.choice((1, 1, 2, 3)))
        jobs_an_hour = rng.choice((1, 1, 3)) if self.pattern != "single" else 1
        self.journal = Journal(limits=Limits(jobs_an_hour=jobs_an_hour))
        self.judge = Judge(self.world, jobs_an_hour=jobs_an_hour)
        self.collectors = [Collector("a", Clock())]
        if "duel" in self.chaos:
            off = rng.randrange(-600, 601) * SECOND
            self.collectors.append(Collector("b", Clock(off)))
            self.judge.slack = abs(off)
        self.asked, self.denied, self.repaired = 0, {}, False
        self._jobs()

    def _jobs(self) -> None:
        for i in range(self.rng.randrange(1, 4)):
            self.world.place(f"j{i}", self.rng.choice((1, 1, 1, 2, 2, 10)))
            if f"j{i}" in self.world.jobs and self.rng.random() < 0.15:
                self.world.jobs[f"j{i}"].refusals = ("interactive",) if self.pattern != "single" else ()
        for job in list(self.world.jobs.values()):
            if self.rng.random() < 0.2 and self.pattern != "single":  # a shared node
                beside = Job(
                    f"{job.name}s", job.nodes[:1], 1, checkpoint=self.rng.choice(("none", "saved", "saved"))
                )
                self.world.start(beside)

    def fault(self, name: str) -> None:
        """A node has an actionable finding, and a case of its own."""
        self.world.findings.append((name, self.world.now))
        for collector in self.collectors:
            collector.see(name, self.world.now)
        self.journal.number += 1
        fatal = signal(self.rng, 2 * SECOND, origin="driver", fatal=True)
        pair = (
            signal(self.rng, 2 * SECOND, origin="peers"),
            signal(self.rng, 2 * SECOND, origin="scheduler"),
        )
        evidence = (fatal,) if self.rng.random() < 0.7 or self.pattern == "single" else pair
        if self.pattern == "jobs" and self.rng.random() < 0.6:
            evidence = (signal(self.rng, 2 * SECOND, origin="job"),)
        self.journal.cases.setdefault(name, Case(f"c{self.journal.number}", name, evidence))

    def trouble(self, step: int) -> None:
        """Let faults come as the pattern says."""
        names, rng = list(self.world.nodes), self.rng
        if self.pattern == "single":
            hit = [rng.choice(names)] if step == 0 else []
        elif self.pattern == "jobs":
            hit = [rng.choice([n for n in names if self.world.on.get(n)] or names)] if step % 3 == 0 else []
        elif self.pattern == "all":
            hit = names if step == 1 else []
        elif self.pattern == "waves":
            hit = rng.sample(names, max(1, len(names) // 8)) if rng.random() < 0.4 else []
        elif self.pattern == "racks":
            rack = self.world.nodes[rng.choice(names)].domain
            hit = [n for n in names if self.world.nodes[n].domain == rack] if step % 4 == 1 else []
        elif self.pattern == "domain":
            rack = self.world.nodes[names[0]].domain
            hit = [n for n in names if self.world.nodes[n].domain == rack] if step == 1 else []
        else:
            hit = [rng.choice(names)] if rng.random() < 0.35 else []
        for name in hit:
            self.fault(name)
        for job in self.world.jobs.values():
            if rng.random() < 0.04:
                job.live = False

    def harm(self) -> None:
        """Let the world around change as the chaos says."""
        rng, world = self.rng, self.world
        node = world.touch(rng.choice(list(world.nodes)))
        if "foreign" in self.chaos and rng.random() < 0.5:
            node.mark = rng.choice(("foreign", "foreign", "" if node.mark == "foreign" else node.mark))
        if "maintenance" in self.chaos and rng.random() < 0.4:
            node.maintenance = rng.choice(("", "Slurm reservation"))
        if "others" in self.chaos and rng.random() < 0.3:
            node.remediator, node.protected = rng.choice((("", ""), ("draino", ""), ("", "opted out")))
            world.others = rng.choice(("", "", "NVSentinel"))
        if "silence" in self.chaos and rng.random() < 0.4:
            for name in rng.sample(list(world.nodes), max(1, len(world.nodes) // rng.choice((2, 5, 10, 50)))):
                quiet = world.touch(name)
                quiet.silent = rng.random() < 0.6
                quiet.dead = quiet.silent and rng.random() < 0.3
        if "modes" in self.chaos and rng.random() < 0.5:
            world.paused = rng.random() < 0.2
            world.mode = rng.choice(("observe", "recommend", "act", "act"))
            world.partition_modes = {f"p{rng.randrange(3)}": rng.choice(("observe", "recommend", "act"))}
        if "clock jumps" in self.chaos and "duel" not in self.chaos and rng.random() < 0.2:
            by = rng.choice(
                (-DAY, -HOUR, -5 * MINUTE, -MINUTE, MINUTE, 40 * MINUTE, HOUR, 5 * HOUR, 50 * 365 * DAY)
            )
            self.collectors[0].clock.jump(by, world.now)
        if world.tripped and rng.random() < 0.3:
            world.tripped = 0

    def step(self, number: int) -> None:
        """Some time passes; leases are renewed; the collectors ask for what they want."""
        rng, world = self.rng, self.world
        world.now += rng.choice(
            (
                5 * SECOND,
                20 * SECOND,
                40 * SECOND,
                2 * MINUTE,
                5 * MINUTE,
                15 * MINUTE,
                35 * MINUTE,
                HOUR if rng.random() < 0.8 else 9 * HOUR,
            )
        )
        self.trouble(number)
        if self.pattern != "single":
            self.harm()
        for collector in rng.sample(self.collectors, len(self.collectors)):
            if "partitions" not in self.chaos or rng.random() < 0.7:
                world.lease.renew(collector.name, world.now + collector.clock.off, world.now)
            if rng.random() < 0.7:
                collector.lagging.clear()
        for _ in range(rng.randrange(1, 4)):
            world.now += rng.choice((0, 1, 5, 12, 20)) * SECOND if self.pattern != "single" else 0
            self.want(rng.choice(self.collectors))

    def want(self, collector: Collector) -> None:
        """Ask for one step of one case, right or wrong, and have the effect if it may be."""
        rng, world = self.rng, self.world
        spare = rng.choice(list(world.nodes))
        case = rng.choice(list(self.journal.cases.values()) or [Case("none", spare, ())])
        kind, job = next_kind(world, case)
        clock_ns = world.now + collector.clock.off
        if case.id == "none" and job is None and "wild" not in self.chaos:
            return
        ends = [job] if job else world.live_on(case.node)
        gpus = sum(
            each.gpus
            for each in ends
            if each.live and kind in ("stop_job", "move_job", "reset_gpu", "reboot")
        )
        asked = proposal(self.journal, case, kind, clock_ns, job, gpus)
        if "wild" in self.chaos and rng.random() < 0.6:
            asked = wild(rng, world, asked, self.journal.past, clock_ns)
        self.decide(collector, asked)

    def decide(self, collector: Collector, asked: Proposal) -> None:
        """Let the kernel decide; act on its word alone."""
        rng, world = self.rng, self.world
        clock_ns = world.now + collector.clock.off
        state, honest = collector.view(world, self.journal), True
        if "malformed" in self.chaos and rng.random() < 0.4:
            state, honest = spoilt(rng, state, clock_ns), False
        verdict = authorise(state, asked, clock_ns)
        self.asked += 1
        self.denied[verdict.gate] = self.denied.get(verdict.gate, 0) + 1
        if honest and not world.tripped and not {"clock jumps", "duel"} & set(self.chaos):
            self.judge.noticed(verdict.trips_breaker)
        if verdict.trips_breaker:
            world.tripped = clock_ns
        if verdict.effect == "recommend" and rng.random() < 0.6:
            self.decide(collector, replace(asked, approved_by="ann"))
        elif verdict.effect == "act":
            self.act(collector, asked, verdict.interrupts, honest)
            if "lost answers" in self.chaos and rng.random() < 0.4:
                collector.lagging.add(asked.node)
                self.decide(collector, asked)  # a naive executor asks again for the same

    def act(self, collector: Collector, asked: Proposal, ends: tuple[str, ...], honest: bool) -> None:
        """Write the intent down, then have the effect, by the truth of that moment."""
        world = self.world
        node = world.nodes.get(asked.node)
        self.journal.past.append(intent(world, asked, ends, world.now + collector.clock.off))
        generation = world.lease.believed.get(collector.name, 0)
        world.now += landing(self.rng)
        if node and asked.kind == "hold" and node.mark == "ours":
            return  # a look shows that it is so
        live = world.live_on(asked.node) if asked.kind in ("reset_gpu", "reboot") else []
        if asked.kind in ("stop_job", "move_job") and asked.job in world.jobs and world.jobs[asked.job].live:
            live = [world.jobs[asked.job]]
        effect = Effect(
            asked.id,
            asked.case,
            asked.kind,
            asked.node,
            asked.job,
            world.now,
            collector.name,
            generation,
            bool(asked.approved_by),
            tuple((job.name, job.gpus) for job in live),
        )
        self.judge.before(effect, asked, honest)
        if not self.judge.wrong:
            world.happen(effect)
            self._progress(asked)

    def _progress(self, asked: Proposal) -> None:
        case = self.journal.cases.get(asked.node)
        if asked.kind == "release":
            self.repaired = True
            self.journal.close(asked.node)
        elif case:
            case.repaired = case.repaired or asked.kind in ("reset_gpu", "reboot")
            case.validated = case.validated or asked.kind == "validate"


def run(seed: int, steps: int = 24, pattern: str = "") -> Result:
    """Run one seed to its end, or to the first thing that was wrong."""
    sim = Sim(seed, pattern)
    steps = 8 if sim.size > 500 else 60 if sim.pattern == "single" else steps
    for number in range(steps):
        sim.step(number)
        if sim.judge.wrong or (sim.pattern == "single" and sim.repaired):
            break
    if sim.pattern == "single" and not sim.repaired:
        sim.judge.wrong.append("act did not act: one true fatal fault was not repaired")
    return Result(
        seed,
        sim.pattern,
        sim.size,
        sim.chaos,
        sim.judge.wrong,
        sim.asked,
        len(sim.world.effects),
        sim.repaired,
        tuple(effect.kind for effect in sim.world.effects),
        sim.denied,
    )
