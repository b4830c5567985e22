"""Bayesian online change-point detection: how likely it is that a new regime has just begun.

One vectorised step over all series. Observations are in units of the series' own noise around its own
baseline, and clipped: an ordinary spike must not look like a new regime, two in a row may.
Source: Adams & MacKay 2007, normal-inverse-gamma; methods.md section 5.5. With a constant hazard P(r = 0)
equals the hazard at every step, so what is tested is the probability of a short run, P(1 <= r <= 8).
Blind spot: a creep slower than the baseline learns.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

RUNS: Final = 96  # run lengths kept; longer ones share the last place
SHORT: Final = 8
_HAZARD: Final = 1 / 250
_CLIP: Final = 4.0
_KAPPA: Final = 0.02  # a new regime's mean is anywhere within some 7 sigma
ALPHA: Final = 4.0  # its noise is much like the old one's

_STEPS = np.arange(RUNS, dtype=np.float64)
_KAPPAS = _KAPPA + _STEPS
_ALPHAS = ALPHA + _STEPS / 2
_NORM = np.array(
    [math.lgamma(a + 0.5) - math.lgamma(a) - 0.5 * math.log(2 * a * math.pi) for a in _ALPHAS.tolist()]
)
_SPREAD = (_KAPPAS + 1) / (_ALPHAS * _KAPPAS)


def fresh(series: int) -> tuple[Float, Float, Float]:
    """Run-length probabilities, means and betas of series that have seen nothing, each [series, RUNS]."""
    chances = np.zeros((series, RUNS))
    chances[:, 0] = 1.0
    return chances, np.zeros((series, RUNS)), np.full((series, RUNS), ALPHA)


def step(chances: Float, means: Float, betas: Float, observed: Float) -> tuple[Float, Float, Float]:
    """Take one observation a series, [series], in units of its noise; return the three arrays after it."""
    value = np.clip(observed, -_CLIP, _CLIP)[:, None]
    gap = value - means
    scale = betas * _SPREAD
    predicted = np.exp(
        _NORM - 0.5 * np.log(scale) - (_ALPHAS + 0.5) * np.log1p(gap**2 / (2 * _ALPHAS * scale))
    )
    weight = chances * predicted
    grown = np.empty_like(weight)
    grown[:, 0] = _HAZARD * weight.sum(axis=1)
    grown[:, 1:] = (1 - _HAZARD) * weight[:, :-1]
    grown[:, -1] += (1 - _HAZARD) * weight[:, -1]
    grown /= grown.sum(axis=1, keepdims=True)
    moved = means + gap / (_KAPPAS + 1)
    wider = betas + _KAPPAS * gap**2 / (2 * (_KAPPAS + 1))
    new_means, new_betas = np.zeros_like(means), np.full_like(betas, ALPHA)
    new_means[:, 1:], new_betas[:, 1:] = moved[:, :-1], wider[:, :-1]
    return grown, new_means, new_betas


def short_run(chances: Float, means: Float) -> tuple[Float, Float]:
    """P(1 <= r <= 8) and the mean of those runs, in units of noise, each [series]."""
    part = chances[:, 1 : SHORT + 1]
    chance = part.sum(axis=1)
    mean = (part * means[:, 1 : SHORT + 1]).sum(axis=1) / np.maximum(chance, 1e-300)
    return chance, mean
