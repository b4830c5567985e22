"""What Slurm's prolog waits for us: wall time of deploy/slurm/gpuvigil-verdict, 1,000 runs each way.

Without a verdict (a healthy node) and with one that is signed and refuses. Promise: p99 at most 50 ms. The
start of the script from this process is in it. CPU is of the script and all that it starts.
usage: bench_slurm_verdict.py [--runs 1000]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from integration.slurm_verdicts import VerdictNode

P99_MAX_MS = 50.0


def cpu_s() -> float:
    """CPU of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(node: VerdictNode, runs: int, code: int) -> tuple[list[float], float]:
    """Return wall times, sorted, and CPU per run, both ms."""
    took, before = [], cpu_s()
    for _ in range(runs):
        began = time.perf_counter()
        assert node.run().returncode == code
        took.append(1e3 * (time.perf_counter() - began))
    return sorted(took), 1e3 * (cpu_s() - before) / runs


def main() -> int:
    """Print the table; 1 when a p99 is over the promise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    runs = min(100, given.runs) if given.quick else given.runs
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, nice {os.nice(0)}, n = {runs}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        node = VerdictNode(Path(folder))
        for name, code in (("no verdict", 0), ("signed verdict", 1)):
            if code:
                node.put(node.text())
            took, cpu = measured(node, runs, code)
            p50, p99 = took[runs // 2], took[int(runs * 0.99)]
            print(
                f"{name:15} p50 {p50:5.1f} ms  p99 {p99:5.1f} ms  max {took[-1]:5.1f} ms  CPU {cpu:4.1f} ms"
            )
            worst = max(worst, p99)
    return int(worst > P99_MAX_MS)


if __name__ == "__main__":
    sys.exit(main())
