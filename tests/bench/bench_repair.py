"""Two collectors of which the leading one is stopped, and an executor that is killed: what the outside saw.

usage: bench_repair.py [--quick] [--seed 1]. SIGSTOP of the leader 50 times (R2); kill -9 at every pair of
moments, so also while it resumes (R3). Any double effect ends it with an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import machine
from integration.executor_world import killed_then_resumed, stopped_leaders

STOPS = 50
MOMENTS = (-1, *range(1, 9))
AGAIN = (-1, 1, 2, 3)


def main() -> None:
    """Run both and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        seen = stopped_leaders(Path(folder), stops=5 if given.quick else STOPS, seed=given.seed)
        print(
            f"leader stopped: {seen}, 0 double effects, 0 by a stale leader, {time.monotonic() - start:.0f} s"
        )
        pairs = list(product(MOMENTS[:2] if given.quick else MOMENTS, AGAIN[:1] if given.quick else AGAIN))
        for number, moments in enumerate(pairs):
            killed_then_resumed(Path(folder) / f"kill{number}", moments)
        print(f"killed twice at {len(pairs)} pairs of moments: 0 repeated effects, none left open")


if __name__ == "__main__":
    main()
