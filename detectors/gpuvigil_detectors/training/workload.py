"""What a step should take for the work it had: a robust line over tokens and squared sequence lengths.

Least squares of relative errors with Huber weights, so that neither long steps nor spikes rule the fit.
Where a job's work has not varied, its effect cannot be known: then no line is fitted, and a step with work
outside what was seen gets no opinion until enough of its like were seen.
Source: methods.md section 5.5 (tokens; attention costs the square of the length); Huber 1964.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

FEATURES: Final = 2  # tokens, sum of squared lengths
_ROUNDS: Final = 6
_HUBER: Final = 1.5
_RIDGE: Final = 1e-6
_VARIES: Final = 0.02  # least spread of a feature, as a share of its mean
_MARGIN: Final = 0.05  # work this much outside what was seen is still like it


def fit(seconds: Float, work: Float, count: NDArray[np.int64]) -> tuple[Float, Bool]:
    """Fit `seconds` [S, W] on `work` [S, W, 2]; the first count[s] columns of each row are valid.

    Returns coefficients [S, 3] for (1, tokens, squares) and which rows have a line at all. A feature that is
    NaN or hardly varies gets coefficient 0.
    """
    valid = np.arange(seconds.shape[1]) < count[:, None]
    given = np.isfinite(work) & valid[..., None]
    mean = np.where(given, work, 0).sum(axis=1) / np.maximum(given.sum(axis=1), 1)
    spread = np.sqrt(
        (np.where(given, work - mean[:, None], 0) ** 2).sum(axis=1) / np.maximum(count, 1)[:, None]
    )
    usable = (given.sum(axis=1) == count[:, None]) & (spread > _VARIES * np.abs(mean)) & (mean > 0)
    scaled = np.where(usable[:, None] & valid[..., None], work / np.where(mean > 0, mean, 1.0)[:, None], 0.0)
    design = np.concatenate([np.ones((*seconds.shape, 1)), scaled], axis=2)
    safe = np.where(valid, seconds, 1.0)
    relative = design / safe[..., None]
    weight = valid.astype(np.float64)
    solution = np.zeros((len(seconds), FEATURES + 1))
    ridge = _RIDGE * np.eye(FEATURES + 1)
    for _ in range(_ROUNDS):
        weighted = relative * weight[..., None]
        gram = np.einsum("swi,swj->sij", weighted, relative)
        gram += ridge * np.trace(gram, axis1=1, axis2=2)[:, None, None]
        solution = np.linalg.solve(gram, weighted.sum(axis=1)[..., None])[..., 0]
        error = np.where(valid, np.abs(np.einsum("swi,si->sw", relative, solution) - 1), np.nan)
        scale = _HUBER * 1.4826 * np.nanmedian(error, axis=1, keepdims=True) + 1e-9
        weight = np.where(valid, np.minimum(1.0, scale / np.maximum(np.nan_to_num(error), 1e-12)), 0.0)
    solution[:, 1:] /= np.where(mean > 0, mean, 1.0)
    solution[:, 1:] = np.where(usable, solution[:, 1:], 0.0)
    return solution, usable.any(axis=1)


def predict(solution: Float, work: Float, floor: Float) -> Float:
    """Seconds for `work` [S, ..., 2] by coefficients [S, 3]; at least `floor` [S]."""
    middle = (1,) * (work.ndim - 2)
    coefficients = solution[:, 1:].reshape(len(solution), *middle, FEATURES)
    base = solution[:, 0].reshape(len(solution), *middle)
    least = floor.reshape(len(solution), *middle)
    out: Float = np.maximum(base + (coefficients * np.nan_to_num(work)).sum(axis=-1), least)
    return out


def foreign(work: Float, seen: Float, count: NDArray[np.int64]) -> Bool:
    """Which rows of `work` [S, 2] lie outside what was seen, [S, W, 2], by more than a margin."""
    valid = (np.arange(seen.shape[1]) < count[:, None])[..., None]
    low = np.where(valid, seen, np.inf).min(axis=1)
    high = np.where(valid, seen, -np.inf).max(axis=1)
    outside = (work < low * (1 - _MARGIN)) | (work > high * (1 + _MARGIN))
    out: Bool = (outside & np.isfinite(work)).any(axis=1)
    return out
