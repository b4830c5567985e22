"""The training stage: every job judged once a tick, as facts that the job itself tells.

Level-triggered like all fact detectors. What a job says is one trust origin ("job"): it opens incidents and
never stands alone for an action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuvigil_detectors.base import Evidence, Finding, Severity, Snapshot
from gpuvigil_detectors.training import hang, slow
from gpuvigil_detectors.training.hang import Stall
from gpuvigil_detectors.training.jobs import FLAGS, SECOND_NS, STEP, Job, Jobs, Rank
from gpuvigil_detectors.training.slow import Pace

_VERDICT_LOOKS: Final = 5  # ticks in a row that blame the same ranks make a suspicion a verdict
_DEAD_KEPT_NS: Final = 600 * SECOND_NS
_ENDED_KEPT_NS: Final = 60 * SECOND_NS
_TOGETHER_NS: Final = SECOND_NS // 2  # ranks that die so near to each other were ended, as by scancel
_NOT_FINITE: Final = 2 | 4
_LOSS_STEPS: Final = 10


class Training:
    """Jobs, and what holds of each now. `jobs` may be read by the exporters between ticks."""

    name = "training"

    def __init__(self) -> None:
        self.jobs = Jobs()
        self._paces: dict[str, Pace] = {}
        self._stalls: dict[str, tuple[int, tuple[int, ...], int]] = {}  # since, culprits, looks

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Judge every job."""
        self.jobs.take(snapshot)
        now_ns, by_name = snapshot.now_ns, self.jobs.by_name
        found = [claim.finding(job, now_ns) for job in by_name.values() for claim in self._judge(job, now_ns)]
        self._paces = {name: pace for name, pace in self._paces.items() if name in by_name}
        self._stalls = {name: stall for name, stall in self._stalls.items() if name in by_name}
        return found

    def _judge(self, job: Job, now_ns: int) -> list[Claim]:
        dead = _dead(job, now_ns)
        hung = None if dead else self._hang(job, now_ns)
        return [claim for claim in (dead, hung, self._slow(job), _loss(job)) if claim is not None]

    def _hang(self, job: Job, now_ns: int) -> Claim | None:
        stall = hang.look(job)
        if stall is None:
            self._stalls.pop(job.name, None)
            return None
        began_ns = now_ns - int(stall.seconds * SECOND_NS)
        since_ns, culprits, looks = self._stalls.get(job.name, (began_ns, (), 0))
        looks = looks + 1 if culprits == stall.culprits else 1
        self._stalls[job.name] = (since_ns, stall.culprits, looks)
        certain = stall.kind != "unknown" and looks >= _VERDICT_LOOKS
        blamed = job.ranks[stall.culprits[0]] if stall.culprits else None
        return Claim(
            rule="no_step", fault_class="hang", severity="critical" if certain else "warning",
            start_ns=since_ns, sentence=_hang_sentence(job, stall), rank=blamed,
            evidence=Evidence(
                observed=stall.seconds, expected=stall.limit_s, unit="seconds", since_ns=since_ns,
                facts=(("kind", stall.kind), *_facts(job, blamed)),
            ),
        )  # fmt: skip

    def _slow(self, job: Job) -> Claim | None:
        ranks = job.living
        if not ranks:
            return None
        pace = self._paces.setdefault(job.name, Pace())
        slow.take(pace, ranks[0])
        if not pace.slow:
            return None
        late = slow.late_rank(job)
        rank = late[0] if late else None
        text = f"steps of job {job.name} take {100 * (pace.ratio - 1):.0f} % longer than its own past"
        which = "no single rank is late" if late is None else (
            f"rank {late[0].number} needs {late[1] * 1e3:.0f} ms for data and forward, "
            f"the others {late[2] * 1e3:.0f} ms"
        )  # fmt: skip
        return Claim(
            rule="late_rank" if rank else "slower_than_its_past", severity="warning", rank=rank,
            fault_class="straggler" if rank else "fail_slow", start_ns=pace.since_ns,
            sentence=f"{text}; {which}",
            evidence=Evidence(
                observed=pace.ratio, expected=1.0, unit="ratio", since_ns=pace.since_ns,
                facts=_facts(job, rank),
            ),
        )  # fmt: skip


def _dead(job: Job, now_ns: int) -> Claim | None:
    """Name the rank that died first; the others' end is its consequence."""
    dead = sorted((r for r in job.ranks.values() if r.ended == "died"), key=lambda r: r.ended_ns)
    kept_ns = _DEAD_KEPT_NS if job.living else _ENDED_KEPT_NS
    if not dead or now_ns - dead[-1].ended_ns > kept_ns:
        return None
    first = dead[0]
    spread_ns = dead[-1].ended_ns - first.ended_ns
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
            since_ns=first.ended_ns, facts=_facts(job, first),
        ),
    )  # fmt: skip


def _loss(job: Job) -> Claim | None:
    """Say that a loss or a gradient norm of the newest steps was no number."""
    for rank in job.living:
        rows = rank.steps[-_LOSS_STEPS:]
        flags = np.nan_to_num(rows[:, FLAGS]).astype(np.int64) & _NOT_FINITE
        if not flags.any():
            continue
        place = int(np.flatnonzero(flags)[0])
        what = "loss" if flags[place] & 2 else "gradient norm"
        end_ns = int(rank.end_ns[-_LOSS_STEPS:][place])
        return Claim(
            rule="not_finite", fault_class="loss_fault", severity="warning", start_ns=end_ns,
            sentence=f"the {what} of rank {rank.number} of job {job.name} was not finite in step "
            f"{rows[place, STEP]:.0f}",
            evidence=Evidence(since_ns=end_ns, facts=_facts(job, rank)),
        )  # fmt: skip
    return None


def _hang_sentence(job: Job, stall: Stall) -> str:
    head = (
        f"no rank of job {job.name} has ended a step for {stall.seconds:.0f} s (bound {stall.limit_s:.0f} s)"
    )
    if not stall.culprits:
        return f"{head}; {stall.why}"
    who = ", ".join(str(number) for number in stall.culprits)
    return f"{head}; rank {who} holds it: {stall.why}"


def _facts(job: Job, rank: Rank | None) -> tuple[tuple[str, str], ...]:
    facts = [("job", job.name), ("ranks", str(job.world_size))]
    if rank is not None:
        facts += [("rank", str(rank.number)), ("gpu", rank.gpu)]
    return tuple((key, value) for key, value in facts if value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a judge says of a job, or of one rank of it."""

    rule: str
    fault_class: str
    severity: Severity
    start_ns: int
    sentence: str
    evidence: Evidence
    rank: Rank | None = None
    notify: bool = True

    def finding(self, job: Job, now_ns: int) -> Finding:
        """Turn it into a finding about the rank's entity, else about the job's."""
        return Finding(
            detector="training", rule=self.rule, fault_class=self.fault_class, severity=self.severity,
            entity=job.entity_of(self.rank) if self.rank else job.entity, start_ns=self.start_ns,
            end_ns=now_ns, sentence=self.sentence, origin="job", evidence=self.evidence, notify=self.notify,
        )  # fmt: skip
