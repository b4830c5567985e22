"""Effective training time, and the interval between checkpoints that serves it best.

All times are seconds; rate is failures a second of the whole job (nodes x failures a node-second).
Sources: Young 1974; Kokolis et al. 2024 (ETTR); the exact forms for exponential failures, which
`tests/unit/test_goodput_formulas.py` compares with Monte Carlo.
"""

from __future__ import annotations

import math
from typing import Final

PRIOR_FAILURES: Final = 1.0
PRIOR_RATE: Final = 6.5e-3
"""Failures a node-day that a fleet of H100s is known to have, worth one failure of evidence."""
DAY_S: Final = 86400.0


def ettr(*, rate: float, interval: float, write: float, down: float, restart: float) -> float:
    """Expected share of useful time, exact for exponential failures.

    interval: useful time between checkpoints; write: the loop's stand for one; down: detection and queue, in
    which nothing can fail; restart: until the first new step, in which it can. Raises ValueError.
    """
    if not (interval > 0 and rate >= 0 and min(write, down, restart) >= 0):
        raise ValueError("expected interval > 0 and rate, write, down, restart of at least 0")
    if rate == 0:
        return interval / (interval + write)
    try:
        segment = math.exp(rate * restart) * (1 / rate + down) * math.expm1(rate * (interval + write))
    except OverflowError:
        return 0.0
    return interval / segment


def young_interval(*, rate: float, write: float) -> float:
    """Useful time between checkpoints to first order: sqrt(2 write / rate)."""
    return math.sqrt(2 * write / rate)


def best_interval(*, rate: float, write: float) -> float:
    """The interval that makes `ettr` largest, whatever `down` and `restart` are.

    (1 + W0(-exp(-rate write - 1))) / rate with the principal branch of Lambert's function.
    """
    from scipy.special import lambertw  # noqa: PLC0415 - 0.3 s at the collector's start for one number a tick

    return float((1 + lambertw(-math.exp(-rate * write - 1)).real) / rate)


def failures_per_node_day(failures: int, node_days: float) -> float:
    """Posterior mean of the failure rate of a node: Gamma prior with the mean PRIOR_RATE."""
    return (PRIOR_FAILURES + failures) / (PRIOR_FAILURES / PRIOR_RATE + node_days)
