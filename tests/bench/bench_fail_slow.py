"""Fail-slow on simulated step traces: false alarms of clean runs, and how soon a slowdown is confirmed.

    python tests/bench/bench_fail_slow.py [--quick] [--seed N]

The world is step_traces.py: 2 % jitter, 3 % one-off spikes of 10 to 40 %, 500 steps a run; it knows no bound
of the judge. Beside ours a plain rule: 6 of the last 7 steps more than 6 % over the median of the 100 before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("detectors", "protos", "tests/bench"):
    sys.path.insert(0, str(ROOT / _folder))

from intervals import upper_bound  # noqa: E402 - the script runs without an install
from step_traces import Noise, healthy, slowed, variable_length  # noqa: E402

from gpuvigil_detectors.training.fail_slow import FailSlow  # noqa: E402

STEPS = 500
VERIFIED = 1.10


def ours(seconds: np.ndarray, work: np.ndarray | None = None) -> np.ndarray:
    """Step at which each run is first told as at least 10 % slower; -1 = never, [runs]."""
    judge, names = FailSlow(), tuple(map(str, range(len(seconds))))
    first = np.full(len(seconds), -1)
    for step in range(seconds.shape[1]):
        said = judge.advance(names, seconds[:, step], None if work is None else work[:, step])
        told = said.confirmed & (1 + np.nan_to_num(said.high) >= VERIFIED) & (first < 0)
        first[told] = step
    return first


def plain(seconds: np.ndarray, _work: np.ndarray | None = None) -> np.ndarray:
    """The same of the plain rule."""
    first = np.full(len(seconds), -1)
    for step in range(107, seconds.shape[1]):
        usual = np.median(seconds[:, step - 107 : step - 7], axis=1)
        slow = (seconds[:, step - 6 : step + 1] > 1.06 * usual[:, None]).sum(axis=1) >= 6
        first[slow & (first < 0)] = step
    return first


def report(name: str, first: np.ndarray, onset: np.ndarray | None) -> None:
    """One row: false alarms, or what was found and how many steps after the onset."""
    runs = len(first)
    if onset is None:
        false = int((first >= 0).sum())
        print(f"| {name} | {runs} | {false} false | <= {upper_bound(false, runs):.4f} a run | |")
        return
    found = first >= onset
    early = int(((first >= 0) & (first < onset)).sum())
    delay = (first - onset + 1)[found]
    missed = runs - int(found.sum()) - early
    middle, worst = (np.median(delay), np.quantile(delay, 0.95)) if len(delay) else (np.nan, np.nan)
    print(f"| {name} | {runs} | {int(found.sum())} found, {early} too early | misses <= "
          f"{upper_bound(missed, runs):.4f} | {middle:.0f} / {worst:.0f} steps |")  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    clean, slow = (200, 60) if given.quick else (2000, 300)
    print(f"fail-slow on simulated step traces, seed {given.seed}, {STEPS} steps a run")
    print("| judge, runs | n | outcome | 95 % bound | p50 / p95 after onset |\n|---|---|---|---|---|")
    worlds = {
        "2 % jitter, 3 % spikes": Noise(),
        "5 % jitter": Noise(jitter=0.05),
        "correlated (AR 0.7)": Noise(memory=0.7),
        "heavy tails (t, 3)": Noise(tail=3),
    }
    for world, noise in worlds.items():
        rng = np.random.default_rng(given.seed)
        runs = clean if world == "2 % jitter, 3 % spikes" else clean // 4
        traces = healthy(rng, runs, STEPS, noise)
        for name, judge in (("ours", ours), ("plain", plain)):
            report(f"{name}, {world}, clean", judge(traces), None)
        onset = rng.integers(150, 400, slow)
        traces = slowed(rng, slow, STEPS, noise, 0.10, onset)
        for name, judge in (("ours", ours), ("plain", plain)):
            report(f"{name}, {world}, 10 % slower", judge(traces), onset)
    rng = np.random.default_rng(given.seed)
    seconds, tokens, squares = variable_length(rng, clean // 4, STEPS, Noise())
    work = np.stack([tokens, squares], axis=2)
    report("ours, lengths vary, told, clean", ours(seconds, work), None)
    report("plain, lengths vary, clean", plain(seconds), None)
    onset = rng.integers(150, 400, slow)
    seconds, tokens, squares = variable_length(rng, slow, STEPS, Noise())
    seconds = seconds * np.where(np.arange(STEPS) >= onset[:, None], 1.10, 1.0)
    report("ours, lengths vary, told, 10 % slower", ours(seconds, np.stack([tokens, squares], axis=2)), onset)


if __name__ == "__main__":
    main()
