"""Is a job slower than its own past, and is one rank the reason? k of n against a baseline that it froze.

A step counts as slow at 6 % over the median of the job's usual steps, and 6 of the last 7 confirm. The
baseline then stands until 6 of 7 steps are within 5 % again. Where tokens are
given, time a token is judged, so that longer batches are no slowdown.
Source: formula 5 of the methods: 0 of 2,000 clean simulated runs, 300 of 300 of 10 % steps in 6 iterations.
Blind spot: a job that is slow from its first step on has no better past.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.training.jobs import DATA, FLAGS, FORWARD, SECONDS, STEP, TOKENS, Job, Rank

_LEARN: Final = 20  # steps that make a baseline
_WINDOW: Final = 100  # usual steps that the baseline is the median of
_N, _K = 7, 6
_SLOW, _BACK = 1.06, 1.05
_LATE: Final = 1.10  # a rank's own time over the others' median
_UNUSUAL: Final = 1 | 8 | 16  # first step, evaluation, checkpoint


@dataclass(slots=True, kw_only=True)
class Pace:
    """What is remembered of one job: usual paces, the last n judgements, and whether it is slow now."""

    usual: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    slow: bool = False
    since_ns: int = 0
    judged_ns: int = 0

    @property
    def baseline(self) -> float | None:
        """Median of the usual paces; None while there are too few."""
        return float(np.median(self.usual)) if len(self.usual) >= _LEARN else None

    def take(self, pace: float, end_ns: int) -> None:
        """Judge one step by its pace (seconds, or seconds a token)."""
        base = self.baseline
        self.judged_ns = end_ns
        if base is None:
            self.usual.append(pace)
            return
        self.recent = [*self.recent, pace / base][-_N:]
        slow = sum(ratio > _SLOW for ratio in self.recent)
        if not self.slow and slow >= _K:
            self.slow, self.since_ns = True, end_ns
        elif self.slow and sum(ratio < _BACK for ratio in self.recent) >= _K:
            self.slow = False
        if not self.slow and pace / base <= _SLOW:  # what may be the beginning of a slowdown is not learned
            self.usual = [*self.usual, pace][-_WINDOW:]

    @property
    def ratio(self) -> float:
        """Mean of the last n steps over the baseline."""
        return float(np.mean(self.recent)) if self.recent else float("nan")


def take(pace: Pace, rank: Rank) -> None:
    """Judge the steps of a job's lowest rank that ended since the last call."""
    new = rank.end_ns > pace.judged_ns
    rows, ends = rank.steps[new], rank.end_ns[new]
    flags = np.nan_to_num(rows[:, FLAGS]).astype(np.int64)
    for row, flag, end_ns in zip(rows, flags, ends, strict=True):
        seconds, tokens = float(row[SECONDS]), float(row[TOKENS])
        if flag & _UNUSUAL or not seconds > 0:
            continue
        pace.take(seconds / tokens if tokens > 0 else seconds, int(end_ns))


def late_rank(job: Job) -> tuple[Rank, float, float] | None:
    """Find the one rank whose own time (data and forward) is 10 % over the others' in the newest steps.

    Returns (rank, its seconds, the others' median), or None: no phases, too few ranks, or no single one.
    """
    ranks = [rank for rank in job.living if len(rank.steps) >= _N]
    if len(ranks) < 2:
        return None
    own = np.array([_own_time(rank) for rank in ranks])
    if not np.isfinite(own).all() or own.max() <= 0:
        return None
    worst = int(own.argmax())
    others = float(np.median(np.delete(own, worst)))
    second = float(np.delete(own, worst).max())
    if own[worst] > _LATE * others and own[worst] > _LATE * second:
        return ranks[worst], float(own[worst]), others
    return None


def _own_time(rank: Rank) -> float:
    times: NDArray[np.float32] = rank.steps[-_N:, [DATA, FORWARD]].sum(axis=1)
    return float(np.median(times)) if np.isfinite(rank.steps[-1, STEP]) else float("nan")
