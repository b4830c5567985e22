"""Further votes by name: models of PyOD over the same Features as the forest.

PyOD is imported only when one of its models is named. Each vote has its own bounds of what it sees (rows
used to fit, rows scored), because k nearest neighbours are slow in both.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np

from gpuvigil_detectors.base import Float32

_ROWS_MIN: Final = 64
_ROWS_MAX: Final = 2000
# name -> module, class, arguments
TESTED: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "ecod": ("pyod.models.ecod", "ECOD", {}),
    "copod": ("pyod.models.copod", "COPOD", {}),
    "hbos": ("pyod.models.hbos", "HBOS", {}),
    "pca": ("pyod.models.pca", "PCA", {}),
    "knn": ("pyod.models.knn", "KNN", {"n_neighbors": 5}),
}


class VoteError(Exception):
    """A vote that cannot be had: not on the tested list, PyOD not installed, or it may not compile."""


class Vote:
    """One PyOD model behind the forest's two verbs."""

    def __init__(self, name: str, seed: int = 0) -> None:
        if name not in TESTED:
            raise VoteError(f"expected one of {', '.join(sorted(TESTED))}, got {name!r}")
        self.name = name
        self._seed = seed
        module, kind, self._arguments = TESTED[name]
        try:
            self._class = getattr(importlib.import_module(module), kind)
        except ImportError as error:
            raise VoteError(f"{name} needs pyod: pip install 'gpuvigil[pyod]' ({error})") from None
        except OSError:  # numba's compiler asks for memory that it may execute
            raise VoteError(
                f"{name} needs memory that may be executed, which this process may not have: set "
                "MemoryDenyWriteExecute=no in a drop-in of the unit, or name no votes"
            ) from None
        self._model: Any = None

    @property
    def fitted(self) -> bool:
        """Whether it can score."""
        return self._model is not None

    def fresh(self) -> Vote:
        """An unfitted one with the same settings."""
        return Vote(self.name, self._seed)

    def fit(self, features: Float32) -> None:
        """Fit on a sample of the whole rows of [n, K]. Raises ValueError when fewer than 64 are whole."""
        whole = features[np.isfinite(features).all(axis=1)].astype(np.float64)
        if len(whole) < _ROWS_MIN:
            raise ValueError(f"{self.name} needs at least {_ROWS_MIN} whole rows, got {len(whole)}")
        if len(whole) > _ROWS_MAX:
            chosen = np.random.default_rng(self._seed).choice(len(whole), _ROWS_MAX, replace=False)
            whole = whole[np.sort(chosen)]
        self._model = self._class(contamination=0.01, **self._arguments)
        self._model.fit(whole + _jitter(whole, self._seed))

    def score(self, features: Float32) -> Float32:
        """Oddness of each row [S] in the model's own units; NaN where a feature is missing."""
        scores = np.full(len(features), np.nan, dtype=np.float32)
        whole = np.isfinite(features).all(axis=1)
        if self.fitted and whole.any():
            with np.errstate(all="ignore"):
                raw = np.asarray(self._model.decision_function(features[whole].astype(np.float64)))
            scores[whole] = np.where(np.isfinite(raw), np.clip(raw, -1e30, 1e30), np.nan)
        return scores


def _jitter(rows: Any, seed: int) -> Any:
    """Noise far below any feature's unit: histograms and PCA refuse columns that never move."""
    return np.random.default_rng(seed).normal(scale=1e-6, size=rows.shape)
