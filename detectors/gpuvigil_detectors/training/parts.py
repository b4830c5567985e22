"""What a slower step is made of: its ranks' own time, or the exchange between them; and who is late in each.

A synchronous step lasts as long as its slowest rank's own time (data, forward, optimizer) and what lies
between the ranks. If only the latter grew, no node is slow: their network is. If the slowest rank's own time
grew and is another rank's each time, it is the work that moves.
Blind spots: a rank that is slow in backward alone looks like the exchange; a job without phases says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.training.jobs import (
    DATA,
    FLAGS,
    FORWARD,
    OPTIMIZER,
    SECONDS,
    STEP,
    UNUSUAL,
    Job,
    Rank,
)

_LOOKED_AT: Final = 64  # newest steps
_LEAST: Final = 7
_LATELY: Final = 10
_OWN_SHARE: Final = 0.25  # of the growth: less is not the ranks' own
_LATE: Final = 1.05  # how much the slowest rank stands out, over what is usual
_MOSTLY: Final = 0.6  # of the newest steps
_SAME: Final = 0.75  # of the late steps: one rank that has more is the late one

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """A job's step and its slowest rank's own time before it became slow, medians in seconds.

    stands_out: the slowest rank's own time over the median rank's: of many one always is the slowest.
    """

    step: float
    own: float
    stands_out: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The newest steps that all ranks told of, oldest first. ends: ns [n]; own: s [ranks, n]; step: s [n].

    ranks: their numbers, in the order of `own`.
    """

    ranks: tuple[int, ...]
    ends: NDArray[np.int64]
    step: Float64
    own: Float64


def parts(job: Job) -> Parts | None:
    """Lay the ranks' newest steps side by side by their numbers; None where phases or steps are missing."""
    ranks = job.living
    if len(ranks) < 2 or any(len(rank.steps) < _LEAST for rank in ranks):
        return None
    last = min(rank.last_step for rank in ranks)
    if not np.isfinite(last):
        return None
    wanted = np.arange(last - _LOOKED_AT + 1, last + 1)
    found = [_rows(rank, wanted) for rank in ranks]
    rows = np.array([rank.steps[place] for rank, (place, _) in zip(ranks, found, strict=True)], np.float64)
    usual = (np.nan_to_num(rows[:, :, FLAGS]).astype(np.int64) & UNUSUAL) == 0
    good = np.array([there for _, there in found]) & usual
    own = rows[:, :, [DATA, FORWARD, OPTIMIZER]]
    told = np.isfinite(own[:, :, :2]).all(axis=2) & (own[:, :, 1] > 0) & np.isfinite(rows[:, :, SECONDS])
    keep = (good & told).all(axis=0)
    if keep.sum() < _LEAST:
        return None
    return Parts(
        ranks=tuple(rank.number for rank in ranks),
        ends=ranks[0].end_ns[found[0][0]][keep], step=np.median(rows[:, keep, SECONDS], axis=0),
        own=np.nan_to_num(own[:, keep]).sum(axis=2),
    )  # fmt: skip


def _rows(rank: Rank, wanted: Float64) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places of the wanted step numbers among a rank's rows, and which of them are there."""
    numbers = rank.steps[:, STEP].astype(np.float64)
    order = np.argsort(numbers, kind="stable")
    place = order[np.clip(np.searchsorted(numbers, wanted, sorter=order), 0, len(numbers) - 1)]
    return place, numbers[place] == wanted


def usual(found: Parts, since_ns: int) -> Usual | None:
    """What the job's steps were made of until an instant; None where too few are still known."""
    before = found.ends < since_ns
    if before.sum() < _LEAST:
        return None
    own = found.own[:, before]
    return Usual(
        step=float(np.median(found.step[before])), own=float(np.median(own.max(axis=0))),
        stands_out=float(np.median(_stands_out(own))),
    )  # fmt: skip


def _stands_out(own: Float64) -> Float64:
    """The slowest rank's own time over the median rank's, step by step."""
    out: Float64 = own.max(axis=0) / np.maximum(np.median(own, axis=0), 1e-12)
    return out


def only_exchange(found: Parts, before: Usual) -> tuple[float, float] | None:
    """Seconds by which step and slowest rank's own time grew, where the ranks' own is no part of it."""
    grew = float(np.median(found.step[-_LEAST:])) - before.step
    own = float(np.median(found.own[:, -_LEAST:].max(axis=0))) - before.own
    return (grew, own) if grew > 0 and own < _OWN_SHARE * grew else None


def late_ones(found: Parts, before: Usual) -> tuple[int, ...]:
    """Ranks that were the late one, where most of the newest steps had one and no rank mostly was.

    Late is who stands out by more than the slowest used to: what makes all ranks slower moves nothing.
    """
    own = found.own[:, -_LATELY:]
    late = _stands_out(own) > _LATE * before.stands_out
    who, times = np.unique(own.argmax(axis=0)[late], return_counts=True)
    if late.mean() < _MOSTLY or times.max() > _SAME * times.sum():
        return ()
    return tuple(sorted(found.ranks[place] for place in who.tolist()))
