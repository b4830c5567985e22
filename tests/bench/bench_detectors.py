"""Detectors' figures: quality on labelled series beside scikit-learn's forest and random, and cost of a tick.

    python tests/bench/bench_detectors.py [--quick]        # both
    python tests/bench/bench_detectors.py cost             # cost of a tick at 1,000 nodes of 8 GPUs
    python tests/bench/bench_detectors.py quality          # needs the reference data beside the checkout,
                                                           # and pandas: pip install 'gpuvigil[bench]'

It also is a module of callables for the reference program: `bench_detectors.py:forecast`. They run the
product's own classes with the product's own settings on every family; nothing is tuned on a test label.
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

from gpuvigil_detectors.base import FactEvent, Latest, Window  # noqa: E402 - the script runs without an install
from gpuvigil_detectors.features import GPU_METRICS, NODE_METRICS, FeatureTable  # noqa: E402
from gpuvigil_detectors.forecast import Forecast  # noqa: E402
from gpuvigil_detectors.forest import ROWS_MIN, Forest  # noqa: E402
from gpuvigil_detectors.population import RESERVOIR, worst_mean  # noqa: E402
from gpuvigil_detectors.rules import Rules  # noqa: E402
from gpuvigil_detectors.statistical import Statistical  # noqa: E402
from gpuvigil_detectors.structural import Structural  # noqa: E402
from gpuvigil_protos.catalog import CATALOG  # noqa: E402

SECOND = 10**9
HEALTHY = {"gpu_row_remap_pending": 0, "gpu_row_remap_failure": 0, "gpu_recovery_action": 0,
           "filesystem_readonly": 0,
           "gpu_clocks_event_reasons": 4}  # fmt: skip
QUICK = 4
FAMILIES = "smd,asd,nab,skab"  # of gwdg_gpu the labels are the loss of metrics: structural's, not statistics'
STORM = {"gpu_row_remap_failure": 1, "gpu_recovery_action": 2, "gpu_clocks_event_reasons": 0x48}


def _both(train, test):
    return np.vstack([train.to_numpy(np.float32), test.to_numpy(np.float32)])


def forecast(train, test):
    """The product's forecast: mean of the three worst channels' residuals, in sigmas, learned as it goes."""
    both = _both(train, test)
    window = Window(metrics=("m",), entities=tuple(f"n/gpu:{place}" for place in range(both.shape[1])),
                    time_ns=np.arange(1, len(both) + 1, dtype=np.int64) * SECOND, values=both.T[None],
                    learnable=np.ones(both.T.shape, dtype=bool))  # fmt: skip
    scores = Forecast().score(window, len(both))[:, len(train) :]
    return np.nan_to_num(worst_mean(scores.T), nan=0.0)


def forest(train, test):
    """The product's forest over the product's features; normals and trees are learned from training alone."""
    both = _both(train, test).astype(float)
    table = FeatureTable(tuple(train.columns))
    table.state.align(("n/gpu:0",))
    fresh = np.isfinite(both)
    learn = fresh & (np.arange(len(both)) < len(train))[:, None]
    rows = np.vstack([table.advance(both[row, None], fresh[row, None], learn[row, None])
                      for row in range(len(both))])  # fmt: skip
    model, healthy = Forest(seed=0), _sample(rows[: len(train)])
    if len(healthy) >= ROWS_MIN:  # else it has no opinion, as in the product: one number for every row
        model.fit(healthy)
    return np.nan_to_num(model.score(rows[len(train) :]), nan=0.0)


def _sample(rows):
    """As many healthy rows as the product keeps."""
    whole = rows[np.isfinite(rows).all(axis=1)]
    kept = np.random.default_rng(0).permutation(len(whole))[:RESERVOIR]
    return whole[np.sort(kept)]


class Fleet:
    """A snapshot of a large fleet whose values move a little every tick."""

    events = steps = ()
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
            "rank": [f"rank:j/{n}" for n in range(gpus)],
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


class Storm(Fleet):
    """Every GPU of the fleet in four faults at once: an Xid, heat, a failed remapping, the driver's word."""

    def __init__(self, nodes: int, gpus: int) -> None:
        super().__init__(nodes, gpus)
        for metric, value in STORM.items():
            self._values[metric] = np.full_like(self._values[metric], value)
        self.events = tuple(
            FactEvent(node=f"n{n}", time_ns=self.now_ns, kind="xid", origin="driver", entity=f"gpu:GPU-{g}",
                      code=79) for n in range(nodes) for g in range(gpus))  # fmt: skip


def cost(nodes: int = 1000, gpus: int = 8, ticks: int = 130) -> None:
    """Print what a tick of each stage costs, and of the rules when nothing is well."""
    print(f"\ncost of a tick: {nodes} nodes x {gpus} GPUs, {ticks} ticks, one thread (fits in another)")
    print(f"{'stage':20} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    _time(Fleet(nodes, gpus), {"rules": Rules(), "structural": Structural(),
                               "statistical": Statistical(learn_s=60.0)}, ticks)  # fmt: skip
    _time(Storm(nodes, gpus), {"rules, all in fault": Rules()}, 40)


def _time(fleet: Fleet, stages: dict, ticks: int) -> None:
    """One tick a second, as the collector's: models are fitted between and beside the ticks."""
    spent = {name: [] for name in stages}
    for _ in range(ticks):
        began = time.perf_counter()
        fleet.now_ns += SECOND
        for name, stage in stages.items():
            begin = time.perf_counter()
            stage.tick(fleet)
            spent[name].append(1000 * (time.perf_counter() - begin))
        fleet.events = ()
        time.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
    for name, times in spent.items():
        warm = np.array(times[5:])
        print(f"{name:20} {np.median(warm):8.1f} {np.quantile(warm, 0.99):8.1f} {warm.max():8.1f}")


def quality(quick: bool) -> None:
    """Run the reference program over the labelled series with ours, scikit-learn's forests and random."""
    program = SHARED / "bench" / "evaluate_detectors.py"
    if not program.exists():
        print("quality: the reference data are not beside the checkout: not measured")
        return
    this = str(Path(__file__).resolve())
    argv = [sys.executable, str(program), "--data", str(SHARED / "data"), "--families", FAMILIES]
    for detector in (f"{this}:forecast", f"{this}:forest", "iforest_win", "iforest", "random_scores"):
        argv += ["--detector", detector]
    if quick:
        argv += ["--limit", str(QUICK)]
    print(f"\nquality: {f'the first {QUICK} series of each family' if quick else 'all series'}", flush=True)
    subprocess.run(argv, check=True, timeout=3600)


def main() -> None:
    """Print the tables."""
    quick = "--quick" in sys.argv
    wanted = [word for word in sys.argv[1:] if word != "--quick"] or ["cost", "quality"]
    if "cost" in wanted:
        cost(ticks=70 if quick else 130)
    if "quality" in wanted:
        quality(quick)


if __name__ == "__main__":
    main()
