"""Jobs that stand still, from suspicion to verdict: what was found of each, look after look.

A verdict needs more than a stall: the same ranks blamed in 5 looks in a row, or a wait longer than the job
itself allows its collectives. Ranks that then give up, as torch's watchdog has them do, end of the hang: it
stays the fault, with its culprits, and the death of those who waited is no fault of theirs.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Final

from gpuvigil_detectors.base import Evidence, Snapshot
from gpuvigil_detectors.training import hang
from gpuvigil_detectors.training.claim import Claim, facts_of
from gpuvigil_detectors.training.hang import Stall
from gpuvigil_detectors.training.jobs import PHASE, SECOND_NS, Job
from gpuvigil_detectors.training.node_log import NodeLog

_VERDICT_LOOKS: Final = 5
_LOOK_NS: Final = SECOND_NS * 9 // 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """One stall: since when, how many looks in a row named the same ranks, and what was claimed last."""

    since_ns: int
    stall: Stall
    looks: int
    looked_ns: int
    claim: Claim | None = None


class Hangs:
    """Stalls by job. One thread calls it, once a tick and job."""

    def __init__(self, nodes: NodeLog) -> None:
        self._nodes = nodes
        self._watched: dict[str, _Watched] = {}

    def __contains__(self, job: str) -> bool:
        return job in self._watched

    def names(self) -> list[str]:
        """Jobs that make no step now."""
        return list(self._watched)

    def keep(self, jobs: Container[str]) -> None:
        """Forget those that are no more."""
        self._watched = {name: one for name, one in self._watched.items() if name in jobs}

    def judge(self, job: Job, snapshot: Snapshot) -> Claim | None:
        """Say what keeps a job, all of whose ranks live, from its next step; None while it moves."""
        now_ns = snapshot.now_ns
        stall = hang.look(job, now_ns, lambda: self._nodes.struck(job, now_ns))
        if stall is None:
            self._watched.pop(job.name, None)
            return None
        watched = self._next(job.name, stall, now_ns)
        claim = self._claim(job, watched, snapshot)
        self._watched[job.name] = replace(watched, claim=claim)
        return claim

    def gave_up(self, job: Job, dead: Claim) -> Claim | None:
        """Return the verdict on a job whose ranks ended while it stood; None where their end is the fault.

        It is where the first that died is a culprit itself; before the job's own timeout also where nobody
        was blamed for long (that rank may have held all), or where all ended at once, as a person does.
        """
        watched = self._watched.get(job.name)
        if watched is None or watched.claim is None or dead.rank is None or dead.start_ns <= watched.since_ns:
            return None
        stall, waited_s = watched.stall, (dead.start_ns - watched.since_ns) / SECOND_NS
        ended_by_somebody = not dead.notify
        victims = watched.looks >= _VERDICT_LOOKS and bool(stall.culprits) and not ended_by_somebody
        # the collective that timed out may have been begun before the stand
        gave_up = victims or _timed_out(stall, waited_s + stall.limit_s)
        if dead.rank.number in stall.culprits or not gave_up:
            return None
        sentence = (
            f"{watched.claim.sentence}; then ranks gave up, rank {dead.rank.number} after {waited_s:.0f} s"
        )
        return replace(watched.claim, severity="critical", sentence=sentence)

    def _next(self, job: str, stall: Stall, now_ns: int) -> _Watched:
        began_ns = now_ns - int(stall.seconds * SECOND_NS)
        old = self._watched.get(job)
        looks, looked_ns = (
            (old.looks, old.looked_ns) if old and old.stall.culprits == stall.culprits else (0, 0)
        )
        if now_ns - looked_ns >= _LOOK_NS:  # a tick that an event asked for is no look of its own
            looks, looked_ns = looks + 1, now_ns
        since_ns = old.since_ns if old else began_ns
        return _Watched(since_ns=since_ns, stall=stall, looks=looks, looked_ns=looked_ns)

    def _claim(self, job: Job, watched: _Watched, snapshot: Snapshot) -> Claim:
        stall, since_ns = watched.stall, watched.since_ns
        certain = stall.kind != "unknown" and watched.looks >= _VERDICT_LOOKS
        blamed = job.ranks[stall.culprits[0]] if stall.culprits else None
        held = [blamed] if blamed is not None else job.living  # nobody alone: then all together
        waits_for_input = all(rank.phase == PHASE["data"] for rank in held) and stall.kind != "stopped"
        return Claim(
            rule="no_step", fault_class="data_stall" if waits_for_input else "hang",
            severity="critical" if certain or _timed_out(stall, stall.seconds) else "warning",
            start_ns=since_ns, sentence=_sentence(job, stall), rank=blamed,
            evidence=Evidence(
                observed=stall.seconds, expected=stall.limit_s, unit="seconds", since_ns=since_ns,
                facts=(
                    ("kind", stall.kind), *facts_of(job, blamed), *stall.facts,
                    *self._nodes.facts(_nodes_of(job, stall), since_ns, snapshot),
                ),
            ),
        )  # fmt: skip


def _timed_out(stall: Stall, waited_s: float) -> bool:
    return stall.timeout_s is not None and waited_s >= stall.timeout_s


def _nodes_of(job: Job, stall: Stall) -> set[str]:
    """The culprits' nodes; all of the job's where nobody is named."""
    named = [job.ranks[number] for number in stall.culprits if number in job.ranks]
    return {rank.node for rank in named or job.living}


def _sentence(job: Job, stall: Stall) -> str:
    head = (
        f"no rank of job {job.name} has ended a step for {stall.seconds:.0f} s (bound {stall.limit_s:.0f} s)"
    )
    if _timed_out(stall, stall.seconds):
        head += f", longer than the {stall.timeout_s:.0f} s that it allows its collectives"
    if not stall.culprits:
        return f"{head}; {stall.why}"
    who = ", ".join(str(number) for number in stall.culprits)
    return f"{head}; rank {who} holds it: {stall.why}"
