"""What the training hook costs a loop: its calls between real torch steps, and throughput with and without.

Steps of 5 ms and more on the CPU (matrix products), one thread. Throughput is compared in interleaved blocks
of 50 steps, half of them watched, until the half width of the 95 % interval is at most 0.3 % or time is up.
With an agent that reads the ring, and with none (its socket is not there).
usage: bench_hook_overhead.py [--quick] [--minutes 6]
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import harness
import torch

CALLS = 3000
BLOCK = 50
HALF_WIDTH_MAX = 0.003
P50_MAX_US, P99_MAX_US, SLOWDOWN_MAX = 20.0, 100.0, 0.005


def make_step() -> Callable[[], torch.Tensor]:
    """Return a step of at least 5 ms on this machine."""
    torch.set_num_threads(1)
    size = 256
    while True:
        weight = torch.randn(size, size)
        batch = torch.randn(size, size)

        def step() -> torch.Tensor:
            return (batch @ weight).tanh().sum()  # noqa: B023

        times = [_timed(step) for _ in range(30)]
        if statistics.median(times) >= 0.006:
            print(f"step: {size} x {size} product, median {1e3 * statistics.median(times):.1f} ms")
            return step
        size += 64


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


@contextmanager
def watched(with_agent: bool) -> Iterator[object]:
    """Give a fresh monitor, whose ring a real agent reads once a second, or none."""
    from gpuvigil.loop import Monitor

    with harness.Lab() if with_agent else nullcontext() as lab:
        path = "/nonexistent/hook.sock"
        if lab is not None:
            path = str(lab.directory / "hook.sock")
            tables = {
                "": {"node": "bench", "state_directory": str(lab.directory / "agent")},
                "hook": {"socket": path}, "metrics": {"address": ""}, "gpu": {"source": "none"},
            }  # fmt: skip
            lab.module("agent", "gpuvigil_agent", harness.write_toml(lab.directory / "agent.toml", tables))
            harness.wait_for(lambda: Path(path).exists(), 30, "the agent's socket", lab)
        os.environ["GPUVIGIL_SOCKET"] = path
        monitor = Monitor()
        with monitor.step():
            pass
        if lab is not None:
            harness.wait_for(lambda: monitor._link.registered, 30, "the registration", lab)
        yield monitor


def call_costs(monitor: object, step: Callable[[], torch.Tensor]) -> list[float]:
    """Microseconds that the hook's calls of one step take, between real steps."""
    costs = []
    clock = time.perf_counter_ns
    for _ in range(CALLS):
        a = clock()
        entered = monitor.step().__enter__()
        b = clock()
        loss = step()
        c = clock()
        entered.log(loss=loss, tokens=4096)
        entered.__exit__(None, None, None)
        costs.append((b - a + clock() - c) / 1e3)
    return costs


def tight_loop(monitor: object) -> float:
    """Microseconds a step of a loop that does nothing else."""
    began = time.perf_counter()
    for _ in range(100_000):
        with monitor.step() as s:
            s.log(loss=1.0)
    return 1e6 * (time.perf_counter() - began) / 100_000


def block(step: Callable[[], torch.Tensor], monitor: object | None) -> float:
    """Seconds of one block of steps."""
    began = time.perf_counter()
    for _ in range(BLOCK):
        if monitor is None:
            step()
        else:
            with monitor.step() as s:
                s.log(loss=step(), tokens=4096)
    return time.perf_counter() - began


def slowdown(step: Callable[[], torch.Tensor], monitor: object, seconds: float) -> tuple[float, float, int]:
    """Mean relative slowdown, its half width (95 %), and the number of pairs of blocks."""
    ratios: list[float] = []
    end = time.monotonic() + seconds
    chosen = random.Random(1)
    while time.monotonic() < end:
        order = [None, monitor] if chosen.random() < 0.5 else [monitor, None]
        taken = {one is None: block(step, one) for one in order}
        ratios.append(taken[False] / taken[True] - 1)
        if len(ratios) >= 20 and _half(ratios) <= HALF_WIDTH_MAX:
            break
    return statistics.fmean(_trimmed(ratios)), _half(ratios), len(ratios)


def _trimmed(ratios: list[float]) -> list[float]:
    """Without the tenth at each end: pairs in which something else took the core."""
    ordered = sorted(ratios)
    cut = len(ordered) // 10
    return ordered[cut : len(ordered) - cut] if cut else ordered


def _half(ratios: list[float]) -> float:
    kept = _trimmed(ratios)
    return 1.96 * statistics.stdev(kept) / math.sqrt(len(kept))


def main() -> int:
    """Print both tables; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=6)
    options = parser.parse_args()
    seconds = 20.0 if options.quick else 30 * options.minutes
    print(f"## The hook in a loop\n\n{harness.machine()}, torch {torch.__version__}")
    step, rows, missed = make_step(), [], False
    for name, with_agent in (("agent reads", True), ("no agent", False)):
        with watched(with_agent) as monitor:
            costs = call_costs(monitor, step)
            p50, p99 = harness.percentile(costs, 0.5), harness.percentile(costs, 0.99)
            mean, half, pairs = slowdown(step, monitor, seconds)
            rows.append([name, f"{p50:.1f}", f"{p99:.1f}", len(costs), f"{tight_loop(monitor):.1f}",
                         f"{100 * mean:+.2f} % ± {100 * half:.2f} (n={pairs} pairs)",
                         f"{100 * (mean + half):+.2f} %"])  # fmt: skip
            missed |= p50 > P50_MAX_US or p99 > P99_MAX_US or mean + half > SLOWDOWN_MAX
    harness.print_table(
        "Cost of the hook's calls a step, and throughput in interleaved blocks of 50 steps",
        ("", "p50 us", "p99 us", "n", "tight loop us", "slowdown", "upper bound"), rows,
    )  # fmt: skip
    print(f"\ntarget p50 {P50_MAX_US:g} us, p99 {P99_MAX_US:g} us, slowdown at most 0.5 %: "
          f"{'MISSED' if missed else 'met'}")  # fmt: skip
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
