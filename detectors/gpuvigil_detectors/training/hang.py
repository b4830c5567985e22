"""Whether a job stands still, and who holds it: from steps, phases, heartbeats, and its collectives' records.

Stalled: no rank has ended a step for max(3 x p99 of its step gaps, 15 s), and none is in a phase that may
take long (init, compile, eval, checkpoint). Then what the ranks say of their process groups is judged
(standing.py, blame.py). Where they say nothing or it names nobody, in this order: ranks whose threads do not
run (stopped, or the interpreter lock held), ranks that are steps behind the others, ranks that are in another
phase than all the rest. What cannot be told apart is unknown, and nobody is blamed.
Blind spots: before 20 steps there is no p99, so a hang in them is not seen, nor one inside a long phase.
Source: formula 7 of the methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuvigil_detectors.base import Float32
from gpuvigil_detectors.training import standing
from gpuvigil_detectors.training.jobs import FLAGS, PHASE, SECONDS, UNUSUAL, Job, Rank
from gpuvigil_detectors.training.progress import Kind

FLOOR_S: Final = 15.0
_FACTOR: Final = 3.0
_STEPS_MIN: Final = 20
_HEARTBEAT_S: Final = 5.0  # the hook's thread beats twice a second
_LONG_PHASES: Final = frozenset(PHASE[name] for name in ("checkpoint", "eval", "init", "compile"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """No step for `seconds` where `limit_s` was allowed. culprits: rank numbers, () when unknown."""

    seconds: float
    limit_s: float
    kind: Kind
    culprits: tuple[int, ...]
    why: str


def limit_s(job: Job) -> float | None:
    """Return how long the job may go without a step; None while it has too few to tell."""
    gaps = [_usual(rank) for rank in job.living]
    longest = max(gaps, key=len, default=np.empty(0))
    if len(longest) < _STEPS_MIN:
        return None
    return max(FLOOR_S, _FACTOR * float(np.quantile(longest, 0.99)))


def _usual(rank: Rank) -> Float32:
    flags = np.nan_to_num(rank.steps[:, FLAGS]).astype(np.int64)
    seconds = rank.steps[:, SECONDS]
    usual: Float32 = seconds[(flags & UNUSUAL == 0) & np.isfinite(seconds)]
    return usual


def look(job: Job, now_ns: int) -> Stall | None:
    """Judge one job now; None while it moves, or while nothing can be said."""
    ranks = job.living
    allowed = limit_s(job)
    ages = [rank.step_age_s for rank in ranks]
    if allowed is None or not ages or any(math.isnan(age) for age in ages):
        return None
    if min(ages) <= allowed or any(rank.phase in _LONG_PHASES for rank in ranks):
        return None
    kind, culprits, why = _by_collectives(ranks, now_ns) or _blame(ranks)
    where = standing.stacks((rank.number, rank.standing) for rank in ranks)
    why = f"{why}; {where}" if where else why
    return Stall(seconds=min(ages), limit_s=allowed, kind=kind, culprits=culprits, why=why)


def _by_collectives(ranks: list[Rank], now_ns: int) -> tuple[Kind, tuple[int, ...], str] | None:
    """What the ranks' own records of collectives say; None where they say nothing, or nobody can be named."""
    found = standing.blame(
        ((rank.number, rank.standing, rank.heartbeat_age_s > _HEARTBEAT_S) for rank in ranks), now_ns
    )
    if found is None or not found.culprits:
        return None
    return found.kind, found.culprits, found.sentence


def _blame(ranks: list[Rank]) -> tuple[Kind, tuple[int, ...], str]:
    stopped = [rank for rank in ranks if rank.heartbeat_age_s > _HEARTBEAT_S]
    if stopped and len(stopped) < len(ranks):
        ages = ", ".join(f"{rank.heartbeat_age_s:.0f} s" for rank in stopped)
        return "stopped", _numbers(stopped), f"no thread of its process has run for {ages}"
    newest = max(rank.last_step for rank in ranks)
    behind = [rank for rank in ranks if rank.last_step < newest]
    if behind and len(behind) < len(ranks):
        return "host", _numbers(behind), f"ended step {behind[0].last_step:.0f}, the others {newest:.0f}"
    phases: dict[float, list[Rank]] = {}
    for rank in ranks:
        phases.setdefault(rank.phase, []).append(rank)
    fewest = min(phases.values(), key=len)
    if len(phases) == 2 and 2 * len(fewest) < len(ranks):
        return "host", _numbers(fewest), "it is in another phase of the step than all the others"
    return "unknown", (), "every rank waits in the same place; collectives' own records would tell"


def _numbers(ranks: list[Rank]) -> tuple[int, ...]:
    return tuple(rank.number for rank in ranks)
