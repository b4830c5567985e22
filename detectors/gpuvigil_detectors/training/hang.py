"""Whether a job stands still, and who holds it: from steps, phases, heartbeats, and its collectives' records.

Stalled: no rank has ended a step for max(3 x p99 of its step gaps, 15 s), and none is in a phase that may
take long (init, compile, eval, checkpoint). Then what the ranks say of their process groups is judged
(live_records.py, standing.py, blame.py). Where they say nothing or it names nobody, in this order: ranks
whose threads do not run (stopped, or the interpreter lock held), ranks that are steps behind the others,
ranks in another phase than all the rest. What cannot be told apart is unknown, and nobody is blamed.
Blind spots: before 20 steps there is no p99, so a hang in them is not seen, nor one inside a long phase.
Source: formula 7 of the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuvigil_detectors.base import Float32
from gpuvigil_detectors.training import live_records, standing
from gpuvigil_detectors.training.jobs import FLAGS, PHASE, SECONDS, UNUSUAL, Job, Rank
from gpuvigil_detectors.training.progress import Blame, Kind

FLOOR_S: Final = 15.0
_FACTOR: Final = 3.0
_STEPS_MIN: Final = 20
_HEARTBEAT_S: Final = 5.0  # the hook's thread beats twice a second
_LONG_PHASES: Final = frozenset(PHASE[name] for name in ("checkpoint", "eval", "init", "compile"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """No step for `seconds` where `limit_s` was allowed. culprits: rank numbers, () when unknown.

    facts: what was gathered, for people. timeout_s: how long the job itself waits for a collective, if known.
    """

    seconds: float
    limit_s: float
    kind: Kind
    culprits: tuple[int, ...]
    why: str
    facts: tuple[tuple[str, str], ...] = ()
    timeout_s: float | None = None


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


def look(job: Job, now_ns: int, struck: Callable[[], frozenset[int]] = frozenset) -> Stall | None:
    """Judge one job now; None while it moves, or while nothing can be said.

    struck: ranks whose device has reported a fatal fault; asked only where a job stands.
    """
    ranks = job.living
    allowed = limit_s(job)
    ages = [rank.step_age_s for rank in ranks]
    if allowed is None or not ages or any(math.isnan(age) for age in ages):
        return None
    if min(ages) <= allowed or any(rank.phase in _LONG_PHASES for rank in ranks):
        return None
    since_ns = now_ns - int(min(ages) * 1e9)
    kind, culprits, why = _by_collectives(ranks, now_ns, since_ns, struck()) or _blame(ranks, since_ns)
    where = standing.stacks(((rank.number, rank.standing) for rank in ranks), since_ns)
    why = f"{why}; {where}" if where else why
    return Stall(
        seconds=min(ages), limit_s=allowed, kind=kind, culprits=culprits, why=why,
        facts=_gathered(ranks, since_ns, where), timeout_s=_own_timeout_s(ranks, since_ns),
    )  # fmt: skip


def _own_timeout_s(ranks: list[Rank], since_ns: int) -> float | None:
    """The longest that a rank has said since the job came to a stand."""
    words = (rank.standing for rank in ranks)
    told = (word.timeout_s for word in words if word is not None and word.at_ns >= since_ns)
    return max((seconds for seconds in told if seconds is not None), default=None)


def _gathered(ranks: list[Rank], since_ns: int, where: str) -> tuple[tuple[str, str], ...]:
    """What was gathered since the job came to a stand, as facts of the finding."""
    told = sum(rank.records is not None and rank.records.at_ns >= since_ns for rank in ranks)
    held = [rank for rank in ranks if rank.held is not None and rank.held.at_ns >= since_ns]
    words = "; ".join(f"rank {rank.number}: {rank.held.words}" for rank in held[:4] if rank.held)
    found = (
        ("stacks", where),
        ("outlier", standing.outlier(((rank.number, rank.standing) for rank in ranks), since_ns)),
        ("held", words),
        ("records", f"{told} of {len(ranks)} ranks told their last collectives" if told else ""),
    )
    return tuple((key, value) for key, value in found if value)


def _by_collectives(
    ranks: list[Rank], now_ns: int, since_ns: int, struck: frozenset[int]
) -> tuple[Kind, tuple[int, ...], str] | None:
    """What the ranks' own records of collectives say; None where they say nothing, or nobody can be named.

    Records that were asked for tell ops and sizes: they go before the counts that ranks tell by themselves.
    """
    still = {rank.number: rank.heartbeat_age_s > _HEARTBEAT_S for rank in ranks}
    for found in _judgements(ranks, still, now_ns, since_ns, struck):
        if found is not None and (found.culprits or found.kind == "desync"):
            held = [rank for rank in ranks if rank.number in found.culprits and still[rank.number]]
            return found.kind, found.culprits, found.sentence + _why_held(held, since_ns)
    return None


def _judgements(
    ranks: list[Rank], still: dict[int, bool], now_ns: int, since_ns: int, struck: frozenset[int]
) -> Iterator[Blame | None]:
    yield live_records.blame(((r.number, r.records, still[r.number]) for r in ranks), since_ns, struck)
    yield standing.blame(((r.number, r.standing, still[r.number]) for r in ranks), now_ns, struck)


def _why_held(ranks: list[Rank], since_ns: int) -> str:
    """What is known of ranks whose threads do not run, as more of a sentence."""
    words = {rank.held.words for rank in ranks if rank.held is not None and rank.held.at_ns >= since_ns}
    return "".join(f"; {word}" for word in sorted(words)[:2] if word)


def _blame(ranks: list[Rank], since_ns: int) -> tuple[Kind, tuple[int, ...], str]:
    stopped = [rank for rank in ranks if rank.heartbeat_age_s > _HEARTBEAT_S]
    if stopped and len(stopped) < len(ranks):
        ages = ", ".join(f"{rank.heartbeat_age_s:.0f} s" for rank in stopped)
        why = f"no thread of its process has run for {ages}{_why_held(stopped, since_ns)}"
        return "stopped", _numbers(stopped), why
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
