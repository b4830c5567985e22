"""The training stage: every job judged once a tick, as facts that the job itself tells.

Level-triggered like all fact detectors. What a job says is one trust origin ("job"): it opens incidents and
never stands alone for an action.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Final

from gpuvigil_detectors.base import Evidence, Finding, Snapshot
from gpuvigil_detectors.training import loop_faults, parts, silent, slow
from gpuvigil_detectors.training.claim import Claim, facts_of
from gpuvigil_detectors.training.hangs import Hangs
from gpuvigil_detectors.training.jobs import SECOND_NS, Job, Jobs, Rank
from gpuvigil_detectors.training.node_log import NodeLog
from gpuvigil_detectors.training.slow import Late, Pace, Slowness

_DEAD_KEPT_NS: Final = 600 * SECOND_NS
_ENDED_KEPT_NS: Final = 60 * SECOND_NS
_TOGETHER_NS: Final = SECOND_NS // 2  # ranks that die so near to each other were ended, as by scancel
_VERIFIED: Final = 1.10  # slower by this share is what an owner is told of
_DATA_SHARE, _DATA_GROWTH = 0.10, 2.0
_MORE_WORK: Final = 1.05  # tokens over the others' median
_EXPLAINED: Final = 1.05  # time a token within so much of the others'
_MOVES_OF: Final = 30  # looks at who is late
_PASSES_NS: Final = 600 * SECOND_NS  # a crowded network that lasts longer is told


class Training:
    """Jobs, and what holds of each now. `jobs` may be read by the exporters between ticks."""

    name = "training"

    def __init__(self) -> None:
        self.jobs = Jobs()
        self._slowness = Slowness()
        self._nodes = NodeLog()
        self._late: dict[str, deque[int]] = {}
        self._usual: dict[str, parts.Usual] = {}  # what steps of jobs that are slow now were made of before
        self._hangs = Hangs(self._nodes)

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Judge every job."""
        self.jobs.take(snapshot)
        self._nodes.take(snapshot)
        now_ns, by_name = snapshot.now_ns, self.jobs.by_name
        self._slowness.take(by_name)
        found = [
            claim.finding(job, now_ns) for job in by_name.values() for claim in self._judge(job, snapshot)
        ]
        found += silent.node_lives(by_name.values(), snapshot)
        self._hangs.keep(by_name)
        self._late = {name: late for name, late in self._late.items() if name in by_name}
        self._usual = {name: usual for name, usual in self._usual.items() if name in by_name}
        return found

    def slowdown(self, job: str) -> float:
        """How much slower than its own past a job is now, 0.1 = 10 %; 0 while it is not."""
        pace = self._slowness.paces.get(job)
        return max(0.0, pace.ratio - 1) if pace is not None and pace.slow else 0.0

    def hung(self, job: str) -> bool:
        """Whether a job makes no step now, as far as it is known."""
        return job in self._hangs

    def suspected(self) -> list[str]:
        """Jobs that make no step now: what evidence is gathered of."""
        return self._hangs.names()

    def _judge(self, job: Job, snapshot: Snapshot) -> list[Claim]:
        now_ns = snapshot.now_ns
        dead = _dead(job, now_ns)
        ending = job.ends_as_asked(now_ns)  # what hangs now has been dealt with
        if dead:
            hung = self._hangs.gave_up(job, dead)
            dead = replace(dead, severity="info", notify=False) if hung else dead
        else:
            hung = None if ending else self._hangs.judge(job, snapshot)
        claims = (
            _parked(job), _save_fault(job), dead, hung, self._slow(job, now_ns), loop_faults.not_finite(job),
            loop_faults.spikes(job), loop_faults.memory_growth(job), loop_faults.long_save(job, now_ns),
        )  # fmt: skip
        return [claim for claim in claims if claim is not None]

    def _slow(self, job: Job, now_ns: int) -> Claim | None:
        pace = self._slowness.paces[job.name]
        if not job.living or not (pace.slow or pace.suspect):
            self._late.pop(job.name, None)
            self._usual.pop(job.name, None)
            return None
        late = slow.late_rank(job)
        if not pace.slow:
            return _suspect(job, pace, late)
        found = parts.parts(job)
        if found is not None and job.name not in self._usual:
            before = parts.usual(found, pace.since_ns)
            if before is not None:
                self._usual[job.name] = before
        rule, fault_class, rank, which = self._explain(job, late, found)
        verified = pace.high >= _VERIFIED  # one that is surely smaller is recorded only
        if fault_class == "congestion":
            verified &= now_ns - pace.since_ns > _PASSES_NS
        text = (
            f"steps of job {job.name} take {100 * (pace.ratio - 1):.0f} % longer than its own past "
            f"(95 %: {100 * (pace.low - 1):.0f} to {100 * (pace.high - 1):.0f} %)"
        )
        return Claim(
            rule=rule, severity="warning" if verified else "info", rank=rank, fault_class=fault_class,
            start_ns=pace.since_ns, notify=verified,
            sentence=f"{text}; {which}",
            evidence=Evidence(
                observed=pace.ratio, expected=1.0, unit="ratio", since_ns=pace.since_ns,
                facts=facts_of(job, rank),
            ),
        )  # fmt: skip

    def _explain(
        self, job: Job, late: Late | None, found: parts.Parts | None
    ) -> tuple[str, str, Rank | None, str]:
        """Rule, class, rank and words of a slowdown: input, the work itself, one machine, or nobody's."""
        before = self._usual.get(job.name)
        if found is not None and before is not None and (moving := parts.late_ones(found, before)):
            words = f"{len(moving)} ranks were the late one in turn: the work moves"
            return "late_rank_moves", "workload_imbalance", None, words
        if late is None:
            rule, fault_class, words = self._explain_all(job, found)
            return rule, fault_class, None, words
        worst = self._late.setdefault(job.name, deque(maxlen=_MOVES_OF))
        worst.append(late.rank.number)
        head = (
            f"rank {late.rank.number} needs {late.own * 1e3:.0f} ms for data and forward, the others "
            f"{late.others * 1e3:.0f} ms"
        )
        if late.work >= _MORE_WORK and late.own / late.others <= late.work * _EXPLAINED:
            return "more_work", "workload_imbalance", None, (
                f"{head}, for {late.work:.2f} times their tokens: the work, not its machine"
            )  # fmt: skip
        if len(set(worst)) > 2:
            return (
                "late_rank_moves",
                "workload_imbalance",
                None,
                f"{head}, and the late rank changes: the work moves",
            )
        if late.where == "data":
            return "late_rank_input", "data_stall", late.rank, f"{head}: it waits for its input"
        return "late_rank", "straggler", late.rank, head

    def _explain_all(self, job: Job, found: parts.Parts | None) -> tuple[str, str, str]:
        """Rule, class and words of a slowdown in which no rank is always the late one."""
        share = slow.data_share(job)
        if share is not None and share[0] > _DATA_SHARE and share[0] > _DATA_GROWTH * share[1]:
            words = f"{100 * share[0]:.0f} % of a step waits for input, {100 * share[1]:.0f} % before"
            return "input_holds_it", "data_stall", words
        before = self._usual.get(job.name)
        grew = parts.only_exchange(found, before) if found is not None and before is not None else None
        if grew is not None:
            return "exchange_is_slower", "congestion", (
                f"the exchange between its ranks takes {grew[0] * 1e3:.0f} ms longer, their own time "
                f"{grew[1] * 1e3:.0f} ms: their network, no node"
            )  # fmt: skip
        return "slower_than_its_past", "fail_slow", "no single rank is late"


def _suspect(job: Job, pace: Pace, late: Late | None) -> Claim:
    """Record an early suspicion: it opens nothing, and says where to look if it is confirmed."""
    return Claim(
        rule="may_be_slow", severity="info", fault_class="fail_slow", start_ns=pace.judged_ns, notify=False,
        rank=late.rank if late else None,
        sentence=f"steps of job {job.name} may have become slower; not confirmed",
        evidence=Evidence(since_ns=pace.judged_ns, facts=facts_of(job, late.rank if late else None)),
    )  # fmt: skip


def _parked(job: Job) -> Claim | None:
    """Say that a launcher gave up; until a rank comes up again."""
    if not job.parked:
        return None
    return Claim(
        rule="parked", fault_class="process_dead", severity="critical", start_ns=job.parked_ns,
        sentence=f"{job.parked[:300]}; a person must look",
        evidence=Evidence(since_ns=job.parked_ns, facts=facts_of(job, None)),
    )  # fmt: skip


def _save_fault(job: Job) -> Claim | None:
    """Say that the newest save did not become whole; until one does, or a new attempt begins."""
    fault = job.save_fault
    if fault is None:
        return None
    return Claim(
        rule=f"save_{fault.outcome}", fault_class="checkpoint_stall", severity="warning",
        start_ns=fault.at_ns,
        sentence=f"the checkpoint of job {job.name} at step {fault.step} is {fault.outcome}: {fault.detail}",
        evidence=Evidence(since_ns=fault.at_ns, facts=facts_of(job, None)),
    )  # fmt: skip


def _dead(job: Job, now_ns: int) -> Claim | None:
    """Name the rank that died first; the others' end is its consequence."""
    dead = sorted((r for r in job.ranks.values() if r.ended == "died"), key=lambda r: r.ended_ns)
    kept_ns = _DEAD_KEPT_NS if job.living else _ENDED_KEPT_NS
    if not dead or now_ns - dead[-1].ended_ns > kept_ns:
        return None
    first = dead[0]
    spread_ns = dead[-1].ended_ns - first.ended_ns
    if job.ends_as_asked(first.ended_ns):
        return None  # a person has asked for it
    together = len(dead) > 1 and not job.living and spread_ns <= _TOGETHER_NS
    step = "before its first step" if math.isnan(first.last_step) else f"after step {first.last_step:.0f}"
    sentence = (
        f"all {len(dead)} ranks of job {job.name} ended within 0.5 s, {step}: somebody ended the job"
        if together
        else f"the process of rank {first.number} of job {job.name} died {step}, "
        f"in phase {first.ended_phase or 'none'}; {len(job.living)} of {job.world_size} ranks live"
    )
    return Claim(
        rule="rank_died", fault_class="process_dead", severity="info" if together else "critical",
        start_ns=first.ended_ns, sentence=sentence, rank=first, notify=not together,
        evidence=Evidence(
            observed=float(len(job.living)), expected=float(job.world_size), unit="ranks",
            since_ns=first.ended_ns, facts=facts_of(job, first),
        ),
    )  # fmt: skip
