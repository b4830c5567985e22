"""Storms of findings through the brain: 50 times 1,000 nodes fail at once; how long until all is decided.

    python tests/bench/bench_storm.py [--quick] [--storms N] [--nodes N]

The real tracker, desk, kernel, action store and journal on disk; detectors and agents are left out. Wall and
CPU time from the tick that brings the findings to the last verdict.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import harness  # noqa: E402 - the script runs without an install
from unit.brain_help import Rig  # noqa: E402
from unit.incident_help import finding  # noqa: E402

from gpuvigil_collector.action_store import ActionStore  # noqa: E402
from gpuvigil_collector.repair.build import Senses, make_repair  # noqa: E402
from gpuvigil_collector.repair.settings import Remediation  # noqa: E402

QUIET_S = 700.0  # between two storms: longer than any window of the kernel but the day's


def storm(rig: Rig, nodes: int) -> tuple[float, float, int]:
    """One storm: seconds and CPU seconds until every case has a verdict, and how many ticks that took."""
    rig.rules.findings = [
        finding(
            "gpu_lost", f"n{i}/gpu:{rig.fleet.nodes[f'n{i}'].gpus[0].uuid}", rule="gpu_lost", origin="driver"
        )
        for i in range(nodes)
    ]
    began, cpu, ticks = time.perf_counter(), time.process_time(), 0
    before = sum(rig.repair.desk.hands.decisions.values())
    while sum(rig.repair.desk.hands.decisions.values()) - before < nodes:
        rig.tick()
        ticks += 1
        assert ticks < 100, "the storm is not digested"
    found = time.perf_counter() - began, time.process_time() - cpu, ticks
    rig.rules.findings = []
    for _ in range(40):
        rig.tick()
    rig.tick(QUIET_S)
    for case in list(rig.repair.desk.kept.cases):
        rig.repair.desk.kept.drop(case)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--storms", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1000)
    given = parser.parse_args()
    storms = given.storms or (3 if given.quick else 50)
    rows = []
    with tempfile.TemporaryDirectory(prefix="gpuvigil-bench-") as name:
        rig = Rig(Path(name), nodes=given.nodes, gpus=8, remediation=Remediation(mode="act"))
        rig.repair = rig.pipeline.repair = make_repair(
            Remediation(mode="act"), Path(name), records=ActionStore(Path(name)), executor=rig.effects,
            saves=rig.pipeline.desk, journal=rig.journal, senses=Senses(fence=rig._fence),
        )  # fmt: skip
        for _ in range(storms):
            rows.append(storm(rig, given.nodes))
            marks = rig.repair.desk.kept.marks
            marks.breaker_ns, marks.breaker_closed_ns = 0, rig.fleet.now_ns
    wall, cpu, ticks = (sorted(column) for column in zip(*rows, strict=True))
    print(f"{storms} storms of {given.nodes} findings on {given.nodes} nodes. {harness.machine()}")
    print("| | p50 | max | asked |")
    print("|---|---|---|---|")
    print(f"| until all is decided, s | {wall[len(wall) // 2]:.2f} | {wall[-1]:.2f} | 5 |")
    print(f"| CPU of it, s | {cpu[len(cpu) // 2]:.2f} | {cpu[-1]:.2f} | |")
    print(f"| ticks | {ticks[len(ticks) // 2]} | {ticks[-1]} | |")


if __name__ == "__main__":
    main()
