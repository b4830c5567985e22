"""What FailSlow is set to, and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Confirm when k of the last n steps are more than `above` over the baseline, and `sigmas` of its noise.

    The second bound keeps a job that is noisy by nature from being called slow by nature; `memory` widens it
    where neighbouring steps are alike, because k alike steps say less than k independent ones. least: and
    none of the n is less than this over the baseline.
    """

    k: int
    n: int
    above: float
    sigmas: float
    memory: float
    least: float = -0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLimits:
    """first: steps left out at the start (compilation, caches). warmup: clean steps before an opinion.

    back: within this share of the reference the job has recovered.
    """

    rules: tuple[Rule, ...] = (
        Rule(k=5, n=6, above=0.06, sigmas=2.5, memory=1.0, least=0.03),
        Rule(k=6, n=7, above=0.06, sigmas=2.5, memory=1.0),
        Rule(k=8, n=10, above=0.04, sigmas=1.5, memory=3.0),
    )
    first: int = 3
    warmup: int = 20
    back: float = 0.05
    suspect_chance: float = 0.9
    suspect_above: float = 0.04
    suspect_steps: int = 15
    shift: float = 0.025
    shift_sigmas: float = 1.25
    shift_memory: float = 2.0
    shift_steps: int = 200
    refit: int = 10
    hold: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowOpinion:
    """After one step of each job, all [S].

    excess: this step over the baseline, 0.1 = 10 % slower; NaN is no opinion. suspect, confirmed: the states.
    rule: index of the rule that confirmed, -1. slowdown: median of the steps since the onset over the
    reference; low, high: its 95 % interval; NaN unless confirmed. since: step count at the onset, -1.
    """

    excess: Float
    suspect: Bool
    confirmed: Bool
    rule: NDArray[np.int64]
    slowdown: Float
    low: Float
    high: Float
    since: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
