"""Detectors' figures: quality on labelled series beside scikit-learn's forest and random, and cost of a tick.

    python tests/bench/bench_detectors.py            # both
    python tests/bench/bench_detectors.py cost       # cost of a tick at 1,000 nodes of 8 GPUs
    python tests/bench/bench_detectors.py quality    # needs the reference data beside the checkout

It also is a module of callables for the reference program: `bench_detectors.py:forecast`. Nothing here is
tuned on a test label: settings are those of the product, scaled to the sampling interval alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
for _folder in ("detectors", "protos"):
    sys.path.insert(0, str(ROOT / _folder))

from gpuvigil_detectors.base import Latest, Window  # noqa: E402 - the script runs without an install
from gpuvigil_detectors.features import GPU_METRICS, NODE_METRICS  # noqa: E402
from gpuvigil_detectors.forecast import Forecast, Smoothing  # noqa: E402
from gpuvigil_detectors.forest import Forest  # noqa: E402
from gpuvigil_detectors.rules import Rules  # noqa: E402
from gpuvigil_detectors.statistical import Statistical  # noqa: E402
from gpuvigil_detectors.structural import Structural  # noqa: E402
from gpuvigil_protos.catalog import CATALOG  # noqa: E402

SECOND = 10**9
HEALTHY = {"gpu_row_remap_pending": 0, "gpu_row_remap_failure": 0, "gpu_recovery_action": 0,
           "filesystem_readonly": 0,
           "gpu_clocks_event_reasons": 4}  # fmt: skip
WORST = 3
DAY_S = 86400


def _residuals(train, test):
    """Forecast residuals of every channel over train and test: float32 [rows, channels], causal."""
    both = np.vstack([train.to_numpy(np.float32), test.to_numpy(np.float32)])
    step_ns = int(test.attrs["interval_s"] * SECOND)
    times = np.arange(1, len(both) + 1, dtype=np.int64) * step_ns
    bins = int(min(96, DAY_S / test.attrs["interval_s"])) if len(train) * step_ns >= 2 * DAY_S * SECOND else 0
    detector = Forecast(Smoothing(season_bins=bins))
    names = tuple(f"n/gpu:{place}" for place in range(both.shape[1]))
    out = np.full(both.shape, np.nan, dtype=np.float32)
    for row in range(len(both)):
        window = Window(metrics=("m",), entities=names, time_ns=times[row : row + 1],
                        values=both[row][None, :, None],
                        learnable=np.ones((len(names), 1), dtype=bool))  # fmt: skip
        out[row] = detector.score(window, 1)[:, 0]
        detector.learn(window)
    return out


def forecast(train, test):
    """The product's forecast: mean of the three worst channels' residuals, in sigmas."""
    scores = np.nan_to_num(_residuals(train, test)[len(train) :], nan=0.0)
    return np.sort(scores, axis=1)[:, -WORST:].mean(axis=1)


def _features(train, test):
    """Own distance, slope and missing share, as features.py makes them, over a whole table at once."""
    both = np.vstack([train.to_numpy(float), test.to_numpy(float)])
    known = np.isfinite(both)
    fast, slow = _ewma(both, known, 0.1), _ewma(both, known, 0.01)
    spread = np.sqrt(_ewma((both - slow) ** 2, known, 0.01)) + 0.01 * np.abs(slow) + 1e-6
    distance = np.where(known, np.clip((both - slow) / spread, -20, 20), 0)
    slope = np.clip((fast - slow) / spread, -20, 20)
    missing = 1 - known.mean(axis=1, keepdims=True)
    rows = np.nan_to_num(np.hstack([distance, slope, missing])).astype(np.float32)
    return rows[: len(train)], rows[len(train) :]


def _ewma(values, known, weight):
    out, level = np.empty_like(values), np.where(known[0], values[0], 0.0)
    for row in range(len(values)):
        early = max(weight, 1.0 / (row + 1))
        level = np.where(known[row], level + early * (np.nan_to_num(values[row]) - level), level)
        out[row] = level
    return out


def forest(train, test):
    """The product's forest over features of own history."""
    healthy, rows = _features(train, test)
    model = Forest(seed=0)
    model.fit(healthy)
    return model.score(rows)


class Fleet:
    """A snapshot of a large fleet whose values move a little every tick."""

    events = ()
    nodes: dict = {}

    def __init__(self, nodes: int, gpus: int) -> None:
        self.now_ns = 1_800_000_000 * SECOND
        rng = np.random.default_rng(0)
        locals_of = {
            "gpu": [f"gpu:GPU-{g}" for g in range(gpus)], "node": ["node"],
            "nvlink": [f"nvlink:GPU-{g}/{link}" for g in range(gpus) for link in range(18)],
            "disk": [f"disk:nvme{d}n1" for d in range(4)],
            "filesystem": ["filesystem:/", "filesystem:/scratch"],
            "interface": [f"interface:ib{i}" for i in range(9)],
        }  # fmt: skip
        named = {kind: tuple(f"n{n}/{name}" for n in range(nodes) for name in names)
                 for kind, names in locals_of.items()}  # fmt: skip
        self._entities = {metric: named[spec.entity_kind] for metric, spec in CATALOG.items()}
        self._values = {}
        for metric, names in self._entities.items():
            level = HEALTHY.get(metric, 0.0 if CATALOG[metric].kind == "counter" else 0.5)
            moves = 0.01 if metric in (*GPU_METRICS, *NODE_METRICS) else 0.0
            noise = 1 + moves * rng.normal(size=(8, len(names)))
            self._values[metric] = (level * noise).astype(np.float32)
        self._ages = {
            metric: np.full(len(names), 0.4, dtype=np.float32) for metric, names in self._entities.items()
        }

    @property
    def series(self) -> int:
        """How many series the fleet has."""
        return sum(len(names) for names in self._entities.values())

    def latest(self, metric: str) -> Latest:
        """Newest values, as Snapshot's."""
        row = self.now_ns // SECOND % 8
        return Latest(metric=metric, entities=self._entities[metric], values=self._values[metric][row],
                      age_s=self._ages[metric])  # fmt: skip

    def window(self, metric: str, seconds: int) -> Window:
        """Newest columns, as Snapshot's."""
        last = self.now_ns // SECOND
        times = np.arange(last - seconds + 1, last + 1) * SECOND
        values = self._values[metric][[t // SECOND % 8 for t in times]].T
        return Window(metrics=(metric,), entities=self._entities[metric], time_ns=times.astype(np.int64),
                      values=values[None], learnable=np.ones(values.shape, dtype=bool))  # fmt: skip


def cost(nodes: int = 1000, gpus: int = 8, ticks: int = 70) -> None:
    """Print what a tick of each stage costs."""
    fleet = Fleet(nodes, gpus)
    stages = [Rules(), Structural(), Statistical(learn_s=60.0)]
    spent = {stage.name: [] for stage in stages}
    for _ in range(ticks):
        fleet.now_ns += SECOND
        for stage in stages:
            begin = time.perf_counter()
            stage.tick(fleet)
            spent[stage.name].append(1000 * (time.perf_counter() - begin))
    print(f"\ncost of a tick: {nodes} nodes x {gpus} GPUs, {fleet.series} series, {ticks} ticks, one thread")
    print(f"{'stage':14} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    for name, times in spent.items():
        warm = np.array(times[5:])
        print(f"{name:14} {np.median(warm):8.1f} {np.quantile(warm, 0.99):8.1f} {warm.max():8.1f}")


def quality() -> None:
    """Run the reference program over the labelled series with ours, the baseline forest and random."""
    program = SHARED / "bench" / "evaluate_detectors.py"
    if not program.exists():
        print("quality: the reference data are not beside the checkout: not measured")
        return
    this = str(Path(__file__).resolve())
    argv = [sys.executable, str(program), "--data", str(SHARED / "data")]
    for detector in (f"{this}:forecast", f"{this}:forest", "iforest", "random_scores"):
        argv += ["--detector", detector]
    subprocess.run(argv, check=True, timeout=3600)


def main() -> None:
    """Print the tables."""
    wanted = sys.argv[1:] or ["cost", "quality"]
    if "cost" in wanted:
        cost()
    if "quality" in wanted:
        quality()


if __name__ == "__main__":
    main()
