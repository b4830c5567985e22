"""Run many seeds of the fleet simulation and print what the kernel kept, with n and the 95 % bound of each.

    python tests/sim/run.py --seeds 100000 [--first 0] [--pattern single] [--workers 2]

Exits 1 and names the seeds when one promise was broken. A bound is that of a rate of which 0 of n were seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "protos", "detectors", "collector"):
    sys.path.insert(0, str(ROOT / _folder))
if "--kernel" in sys.argv[:-1]:
    sys.path.insert(0, sys.argv[sys.argv.index("--kernel") + 1])

from bench.intervals import upper_bound  # noqa: E402 - the script runs without an install
from sim.fleet_sim import FLOOR, PATTERNS, Result, run  # noqa: E402

CHUNK = 100


def chunk(first: int, last: int, pattern: str) -> list[Result]:
    """Run the seeds from first to last, last left out."""
    return [run(seed, pattern=pattern) for seed in range(first, last)]


def every(seeds: int, first: int, pattern: str, workers: int) -> Iterator[list[Result]]:
    """Run all seeds, chunk by chunk; with one worker in this process."""
    starts = range(first, first + seeds, CHUNK)
    rows = [(start, min(start + CHUNK, first + seeds), pattern) for start in starts]
    if workers == 1:
        yield from (chunk(*row) for row in rows)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(chunk, *zip(*rows, strict=True))


def bound(wrong: int, n: int) -> str:
    """Return the upper 95 % bound of a rate."""
    return f"{upper_bound(wrong, n):.2e}" if n else "-"


def table(results: list[Result]) -> list[str]:
    """Return the lines of the table: a pattern or a size of the floor a line."""
    lines = [f"{'fault pattern':<24}{'seeds':>8}{'asked':>10}{'effects':>9}{'wrong':>7}{'95 % bound':>12}"]

    def line(name: str, of: list[Result]) -> None:
        wrong = sum(bool(each.wrong) for each in of)
        asked, effects = sum(each.asked for each in of), sum(each.effects for each in of)
        lines.append(f"{name:<24}{len(of):>8}{asked:>10}{effects:>9}{wrong:>7}{bound(wrong, len(of)):>12}")

    for pattern in PATTERNS:
        line(pattern, [each for each in results if each.pattern == pattern])
    for kind in sorted({kind for each in results for kind in each.chaos}):
        line(f"with {kind}", [each for each in results if kind in each.chaos])
    for size in FLOOR:
        line(f"acts in a fleet of {size}", [r for r in results if r.pattern == "single" and r.size == size])
    line("fleets of 1,000 and more", [each for each in results if each.size >= 1000])
    line("all", results)
    effects = sum(each.effects for each in results)
    lines.append(
        f"wrong effects, upper bound: {bound(sum(bool(r.wrong) for r in results), effects)} of {effects}"
    )
    done = Counter(kind for each in results for kind in each.done)
    lines.append("effects: " + ", ".join(f"{kind} {n}" for kind, n in done.most_common()))
    denied = Counter()
    for each in results:
        denied.update(each.denied)
    lines.append("denied by: " + ", ".join(f"{gate} {n}" for gate, n in denied.most_common() if gate))
    return lines


def main() -> int:
    """Run, print, and name what was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--pattern", choices=PATTERNS, default="")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--stop", action="store_true", help="stop at the first hundred seeds with a broken one"
    )
    parser.add_argument("--kernel", help="a source root with another kernel, for mutants")
    given = parser.parse_args()
    start = time.monotonic()
    results: list[Result] = []
    for part in every(given.seeds, given.first, given.pattern, given.workers):
        results += part
        if given.stop and any(each.wrong for each in part):
            break
    print("\n".join(table(results)))
    print(f"{len(results)} seeds in {time.monotonic() - start:.0f} s with {given.workers} processes")
    broken = [each for each in results if each.wrong]
    for each in broken[:20]:
        what = f"{each.pattern}, {each.size} nodes, {', '.join(each.chaos)}"
        print(f"BROKEN seed {each.seed} ({what}): {each.wrong[0]}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
