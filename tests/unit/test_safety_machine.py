"""The safety kernel under random days: Hypothesis drives it, and a ledger of our own counts the effects.

The ledger knows the design's numbers, true time and what really happened; it reads nothing of the kernel but
whether it lets an action act.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from unit.safety_world import DAY, FATAL, HOST, HOUR, JOB, MINUTE, NOW, PEERS, SECOND, STATISTICS, ask, fleet

from gpuvigil_collector.action import Fence, FleetState, JobState, Past
from gpuvigil_collector.safety import authorise

SIZE = 24
NAMES = st.sampled_from([f"n{i}" for i in range(SIZE)])
EVIDENCE = st.sampled_from([(FATAL,), (HOST, PEERS), (JOB,), (STATISTICS,), (JOB, STATISTICS), ()])
WORN = st.sampled_from(["n0", "n1", "n2", "n3", "n4", "n9"])
OTHERS = st.sampled_from(["reset_gpu", "reboot", "validate", "release", "release"])
LOST = ["past", "nodes", "jobs", "actionable", "breaker_ns", "others", "fence", "paused", "mode", "limits"]
LEASE = 30 * SECOND


class Day(RuleBasedStateMachine):
    """A fleet of 24 nodes in two partitions, four to a rack; two collectors share a record, not a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        nodes = fleet(SIZE, nodes_a_rack=4)
        self.nodes = {
            name: replace(node, partition=f"p{i % 2}") for i, (name, node) in enumerate(nodes.items())
        }
        self.jobs: dict[str, JobState] = {}
        for number, name in enumerate(("n0", "n1", "n2", "n9")):
            self._run(f"j{number}", name)
        self.past: list[Past] = []
        self.findings: list[tuple[str, int]] = []
        self.breaker = self.leap = self.number = 0
        self.off = {"a": 0, "b": 0}
        self.renewed: dict[str, int] = {}
        self.generation, self.holder = 0, ""
        self.paused, self.mode, self.unknown = "", "act", ""
        self.done: list[tuple[int, str, str, str, str]] = []  # true time, kind, node, case, job that ran
        self.wrong: list[str] = []

    def _run(self, job: str, *names: str) -> None:
        self.jobs[job] = JobState(job=job, nodes=names, gpus=8 * len(names), checkpoint="saved")
        for name in names:
            self.nodes[name] = replace(self.nodes[name], jobs=(*self.nodes[name].jobs, job))

    def _of(self, who: str) -> FleetState:
        left = LEASE - (self.now - self.renewed.get(who, 0))
        fence = Fence(
            holder=who, generation=max(self.generation, 1), until_ns=self.now + self.off[who] + left
        )
        of = FleetState(
            mode=self.mode,
            paused=self.paused,
            nodes=dict(self.nodes),
            jobs=dict(self.jobs),
            past=tuple(self.past),
            actionable=tuple(self.findings),
            breaker_ns=self.breaker,
            others="",
            fence=fence,
            jumped_ns=self.leap,
        )
        return replace(of, **{self.unknown: None}) if self.unknown else of

    @rule(seconds=st.sampled_from([1, 10, 60, 300, 900, 1801, 3601, 30000, 90000]))
    def time_passes(self, seconds):
        self.now += seconds * SECOND
        if seconds > DAY // SECOND:
            self.leap = 0

    def renews(self, who):
        if self.holder in ("", who) or self.now >= self.renewed[self.holder] + LEASE:
            self.generation += self.holder != who
            self.holder, self.renewed[who] = who, self.now

    @rule(
        what=st.integers(0, 8),
        name=NAMES,
        yes=st.booleans(),
        job=st.sampled_from(["j0", "j1", "j2", "j3"]),
        seconds=st.sampled_from([60, 4000, 90000]),
        word=st.sampled_from(["none", "pending", "saved", "impossible"]),
        lost=st.sampled_from(LOST),
        mode=st.sampled_from(["observe", "recommend", "act"]),
    )
    def the_world_changes(self, what, name, yes, job, seconds, word, lost, mode):
        node = self.nodes[name]
        if what == 0:  # the clocks leap forward
            self.leap += seconds * SECOND
            self.off = {who: off + seconds * SECOND for who, off in self.off.items()}
        elif what == 1:
            self.findings.append((name, self.now + self.off["a"]))
        elif what == 2:
            self.nodes[name] = replace(node, silent=True, dead=yes)
        elif what == 3 and node.hold != "ours":
            self.nodes[name] = replace(node, hold="foreign" if yes else "none")
        elif what == 4:
            self.nodes[name] = replace(node, maintenance="Slurm reservation" if yes else "")
        elif what == 5:
            self.mode, self.paused = mode, "ann" if yes else ""
        elif what == 6:
            self.unknown = lost
        else:
            self.jobs[job] = replace(self.jobs[job], checkpoint=word, dead=yes)

    @rule()
    def people_clear_up(self):
        self.paused, self.mode, self.unknown, self.breaker = "", "act", "", 0
        self.now, self.findings = self.now + 11 * MINUTE, []
        for name, node in self.nodes.items():
            mark = "none" if node.hold == "foreign" else node.hold
            self.nodes[name] = replace(node, silent=False, dead=False, maintenance="", hold=mark)

    def _goes_on(self, name, other, fresh):
        """The next step of a node's repair, asked by who can."""
        node = self.nodes[name]
        running = [job for job in node.jobs if not self.jobs[job].dead]
        kind = "hold" if node.hold != "ours" else "move_job" if running else other
        if kind == "move_job" and self.now % 2:
            self.jobs[running[0]] = replace(self.jobs[running[0]], checkpoint="saved")
        if fresh:
            self.renews("a")
        self._ask(self.holder or "a", name, (FATAL,), "", kind, f"own-{name}", again=False)

    first = rule(name=WORN, other=OTHERS, fresh=st.booleans())(_goes_on)
    second = rule(name=NAMES, other=OTHERS, fresh=st.just(True))(lambda self, **given: self._goes_on(**given))
    third = rule(name=WORN, other=OTHERS, fresh=st.just(True))(lambda self, **given: self._goes_on(**given))

    @rule(
        who=st.sampled_from("ab"),
        name=WORN,
        evidence=EVIDENCE,
        approver=st.sampled_from(["", "", "ann"]),
        kind=st.sampled_from(
            ["hold", "hold", "move_job", "stop_job", "reset_gpu", "reboot", "validate", "release"]
        ),
        case=st.sampled_from(["own", "own", "c1", "c2"]),
        again=st.booleans(),
    )
    def one_is_asked(self, who, name, evidence, approver, kind, case, again):
        self.renews(who)
        self._ask(who, name, evidence, approver, kind, f"own-{name}" if case == "own" else case, again)

    def _ask(self, who, name, evidence, approver, kind, case, again) -> None:
        job = (*self.nodes[name].jobs, "j0")[0] if kind in ("move_job", "stop_job") else ""
        self.number += not again
        asked = ask(
            kind,
            name,
            id=f"a{self.number}",
            case=case,
            job=job,
            evidence=evidence,
            gpus=8,
            approved_by=approver,
        )
        verdict = authorise(self._of(who), asked, self.now + self.off[who])
        if verdict.trips_breaker:
            self.breaker = self.now + self.off[who]
        if verdict.effect == "act":
            self._judge(who, asked)
            self._happen(who, asked, verdict.interrupts)
        if self.number % 3 == 0:
            self.unknown = self.paused = ""
            self.mode = "act"

    def _says(self, bad: object, what: str) -> None:
        if bad:
            self.wrong.append(what)

    def _running(self, asked) -> list[str]:
        names = [asked.job] if asked.job else list(self.nodes[asked.node].jobs)
        ends = asked.kind in ("move_job", "stop_job", "reset_gpu", "reboot")
        return [name for name in names if ends and not self.jobs[name].dead]

    def _judge(self, who, asked) -> None:
        node = self.nodes[asked.node]
        asked_only = self.mode == "recommend" and not asked.approved_by
        self._says(self.unknown, f"acts though {self.unknown} is lost")
        self._says(self.mode == "observe" or asked_only, "acts in observe")
        self._says(self.paused or node.maintenance or node.hold == "foreign", "acts on what is not its own")
        needs = asked.kind in ("reset_gpu", "reboot", "validate", "release")
        self._says(needs and node.hold != "ours", "touches what it does not hold")
        self._says(self.now - self.renewed.get(who, 0) >= LEASE / 2, "acts in the lease's last half")
        self._says(any(each.id == asked.id for each in self.past), "acts twice")
        origins = {signal.origin for signal in asked.evidence} - {"statistics"}
        enough = FATAL in asked.evidence or len(origins) >= 2 or asked.kind in ("validate", "release")
        enough = enough or (origins == {"job"} and asked.kind in ("move_job", "stop_job"))
        self._says(not enough, "acts on too little evidence")
        self._judge_many(who, node)
        self._judge_budgets(asked, node)

    def _judge_many(self, who, node) -> None:
        silent = sum(each.silent and not each.maintenance for each in self.nodes.values())
        self._says(silent >= 5 or (node.silent and not node.dead), "acts blind")
        hit = {n for n, at in self.findings if self.now + self.off[who] - at < 10 * MINUTE}
        hit = {n for n in hit if not self.nodes[n].maintenance}
        racks = {self.nodes[n].domain for n in hit}
        self._says((len(hit) >= 3 and len(racks) >= 2) or self.breaker, "acts in a storm")
        self._says(sum(self.nodes[n].domain == node.domain for n in hit) >= 3, "acts in a domain's fault")

    def _judge_budgets(self, asked, node) -> None:
        for job in self._running(asked):
            self._says(self.jobs[job].checkpoint in ("none", "pending"), "ends a job unsaved")
            hour = [ran for at, _, _, _, ran in self.done if ran and self.now - at < HOUR]
            day = [at for at, _, _, _, ran in self.done if ran == job and self.now - at < DAY]
            self._says(hour, "two jobs an hour")
            self._says(len(day) >= 3, "a job four times a day")
        if asked.kind == "hold" and node.hold == "none":
            self._says(any(each.hold == "ours" for each in self.nodes.values()), "two nodes of 24 held")
        if asked.kind in ("hold", "reset_gpu", "reboot"):
            unit = (asked.node, asked.case)
            recent = [
                (n, c) for at, kind, n, c, _ in self.done if kind == "hold" and self.now - at < 30 * MINUTE
            ]
            near = [each for each in recent if self.nodes[each[0]].domain == node.domain and each != unit]
            own = any((n, c) == unit for _, _, n, c, _ in self.done)
            self._says(near and not own, "two of a rack in half an hour")

    def _happen(self, who, asked, ends) -> None:
        node = self.nodes[asked.node]
        self.past.append(
            Past(
                id=asked.id,
                kind=asked.kind,
                node=asked.node,
                domain=node.domain,
                case=asked.case,
                jobs=ends,
                partition=node.partition,
                job=asked.job,
                gpus=asked.gpus,
                at_ns=self.now + self.off[who],
                open=asked.kind == "hold",
            )
        )
        for job in self._running(asked) or [""]:
            self.done.append((self.now, asked.kind, asked.node, asked.case, job))
        if asked.kind == "hold":
            self.nodes[asked.node] = replace(node, hold="ours")
        if asked.kind == "release":
            self.nodes[asked.node] = replace(node, hold="none")
            self.past = [replace(each, open=each.open and each.node != asked.node) for each in self.past]

    @invariant()
    def nothing_was_wrong(self):
        assert self.wrong == []


Day.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
test_r1_r2_r5_r11_any_day = Day.TestCase
