"""Isolation forest over Features: how few random cuts set a row apart from healthy ones.

scikit-learn grows the trees; they are kept as flat arrays and scored by NumPy alone, so that a model can be
stored as arrays and no estimator is ever unpickled. Source: Liu, Ting & Zhou 2008.
Blind spot: a fault that moves one feature among many. Plain forests are weak alone: one vote among several.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors import models
from gpuvigil_detectors.base import Float32

_KIND: Final = "forest"
ROWS_MIN: Final = 64
_BLOCK: Final = 400  # rows scored at once by all trees: what stays in the cache
_ARRAYS: Final = ("feature", "threshold", "left", "right", "depth")


class Forest:
    """Trees as arrays [trees, nodes]: feature (-1 = leaf), threshold, left, right, depth (path so far)."""

    name = "forest"

    def __init__(self, *, trees: int = 100, rows: int = 256, seed: int = 0) -> None:
        self._trees, self._rows, self._seed = trees, rows, seed
        self._arrays: dict[str, NDArray[Any]] = {}
        self._features = 0
        self._normal = 1.0

    @property
    def fitted(self) -> bool:
        """Whether it can score."""
        return bool(self._arrays)

    def fresh(self) -> Forest:
        """An unfitted one with the same settings."""
        return Forest(trees=self._trees, rows=self._rows, seed=self._seed)

    def fit(self, features: Float32) -> None:
        """Grow the forest from healthy rows [n, K]; rows with a missing feature are left out.

        Raises ValueError when fewer than 64 rows are whole.
        """
        from sklearn.ensemble import IsolationForest  # noqa: PLC0415 - takes a second and is needed once a day

        whole = features[np.isfinite(features).all(axis=1)]
        if len(whole) < ROWS_MIN:
            raise ValueError(f"a forest needs at least {ROWS_MIN} whole rows, got {len(whole)}")
        grown = IsolationForest(
            n_estimators=self._trees,
            max_samples=min(self._rows, len(whole)),
            random_state=self._seed,
            n_jobs=1,
        ).fit(whole)
        self._features = whole.shape[1]
        self._normal = float(_path(np.array([grown.max_samples_]))[0])
        self._arrays = _flatten([tree.tree_ for tree in grown.estimators_], grown.estimators_features_)

    def score(self, features: Float32) -> Float32:
        """Oddness of each row [S], 0 to 1, about 0.5 for the ordinary; NaN where a feature is missing."""
        scores = np.full(len(features), np.nan, dtype=np.float32)
        whole = np.flatnonzero(np.isfinite(features).all(axis=1)) if self.fitted else ()
        for start in range(0, len(whole), _BLOCK):
            rows = whole[start : start + _BLOCK]
            scores[rows] = np.exp2(-self._depths(features[rows]) / self._normal)
        return scores

    def dump(self) -> bytes:
        """The forest as bytes."""
        return models.pack(_KIND, self._arrays, {"features": self._features, "normal": self._normal})

    def load(self, data: bytes) -> None:
        """Take over a dumped forest. Raises ModelError when it is not one."""
        arrays, meta = models.unpack(_KIND, data)
        if not arrays:
            self._arrays = {}
            return
        shapes = {arrays[name].shape for name in _ARRAYS if name in arrays}
        if set(arrays) != set(_ARRAYS) or len(shapes) != 1:
            raise models.ModelError("forest: expected five arrays of one shape [trees, nodes]")
        nodes = arrays["feature"].shape[1]
        inside = all(((arrays[n] >= 0) & (arrays[n] < nodes)).all() for n in ("left", "right"))
        if not inside or arrays["feature"].max() >= int(meta["features"]):
            raise models.ModelError("forest: expected node and feature numbers within the arrays")
        leaf = arrays["feature"] < 0
        if not all((leaf | (arrays[n] > np.arange(nodes))).all() for n in ("left", "right")):
            raise models.ModelError("forest: expected children after their parent: a ring has no end")
        self._arrays = arrays
        self._features, self._normal = int(meta["features"]), float(meta["normal"])

    def _depths(self, rows: Float32) -> NDArray[np.float64]:
        """Mean path length of each row over all trees."""
        trees, nodes = self._arrays["feature"].shape
        base = (np.arange(trees, dtype=np.int32) * nodes)[:, None]
        split = np.maximum(self._arrays["feature"], 0).ravel()
        threshold, depth = self._arrays["threshold"].ravel(), self._arrays["depth"].ravel()
        leaf = self._arrays["feature"] < 0
        here = np.arange(nodes, dtype=np.int32)
        left, right = ((np.where(leaf, here, self._arrays[n]) + base).ravel() for n in ("left", "right"))
        every = np.arange(len(rows))[None, :]
        at = np.broadcast_to(base, (trees, len(rows)))
        while True:
            low = rows[every, split[at]] <= threshold[at]
            below = np.where(low, left[at], right[at])  # a leaf leads to itself
            if np.array_equal(below, at):
                break
            at = below
        return np.asarray(depth[at].mean(axis=0, dtype=np.float64))


def _path(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Mean path length of an unsuccessful search among n rows: 2 (ln(n-1) + gamma) - 2 (n-1)/n."""
    n = np.asarray(rows, dtype=np.float64)
    with np.errstate(all="ignore"):
        long = 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, long))


def _flatten(trees: list[Any], columns: list[NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
    nodes = max(tree.node_count for tree in trees)
    out: dict[str, NDArray[Any]] = {
        "feature": np.full((len(trees), nodes), -1, dtype=np.int32),
        "threshold": np.zeros((len(trees), nodes), dtype=np.float32),
        "left": np.zeros((len(trees), nodes), dtype=np.int32),
        "right": np.zeros((len(trees), nodes), dtype=np.int32),
        "depth": np.zeros((len(trees), nodes), dtype=np.float32),
    }
    for row, (tree, used) in enumerate(zip(trees, columns, strict=True)):
        inner = tree.feature >= 0
        here = slice(0, tree.node_count)
        out["feature"][row, here] = np.where(inner, used[np.maximum(tree.feature, 0)], -1)
        out["threshold"][row, here] = np.nextafter(tree.threshold.astype(np.float32), np.float32(-np.inf))
        exact = out["threshold"][row, here]
        above = np.nextafter(exact, np.float32(np.inf))
        out["threshold"][row, here] = np.where(above <= tree.threshold, above, exact)  # rows are float32
        out["left"][row, here] = np.where(inner, tree.children_left, 0)
        out["right"][row, here] = np.where(inner, tree.children_right, 0)
        out["depth"][row, here] = _levels(tree) + _path(tree.n_node_samples)
    return out


def _levels(tree: Any) -> NDArray[np.float64]:
    """Depth of every node, one level of the tree after the other."""
    level = np.zeros(tree.node_count)
    nodes, depth = np.zeros(1, dtype=np.int64), 0
    while len(nodes):
        level[nodes] = depth
        inner = nodes[tree.children_left[nodes] >= 0]
        nodes, depth = np.concatenate([tree.children_left[inner], tree.children_right[inner]]), depth + 1
    return level
