"""What a decision costs: authorise at 10,000 nodes, and 50 storms of 1,000 findings each.

    python tests/bench/bench_safety.py [--quick]

The state is of 10,000 nodes of 8 GPUs, 1,000 running jobs and a day's full record. "counted before" is what
the collector does: one Inventory a tick, many decisions on it; "plain" reads all nodes for each decision.
Times are of the processor, so that a busy machine does not matter.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("collector", "detectors", "protos"):
    sys.path.insert(0, str(ROOT / _folder))

from dataclasses import replace  # noqa: E402

from gpuvigil_collector.action import Fence, FleetState, JobState, NodeState, Past, Proposal, Signal  # noqa: E402
from gpuvigil_collector.safety import authorise  # noqa: E402
from gpuvigil_collector.safety_facts import Inventory  # noqa: E402

SECOND = 10**9
NOW = 1_800_000_000 * SECOND
NODES, STORMS, FINDINGS = 10_000, 50, 1000
FATAL = Signal(origin="driver", rule="xid_79", start_ns=NOW - SECOND, fatal=True)


def node(i: int) -> NodeState:
    """A node of 8 GPUs that runs a tenth of a job; one of 2,000 is held by us."""
    hold = "ours" if i % 2000 == 0 else "none"
    return NodeState(node=f"n{i}", gpus=8, partition=f"p{i % 4}", domain=f"r{i // 16}", jobs=(f"j{i // 10}",),
                     hold=hold, gpu_uuids=(f"GPU-{i}",))  # fmt: skip


def hold(number: int, name: str, domain: str, at_ns: int, **fields: object) -> Past:
    """A hold of a case of its own."""
    return Past(id=f"past{number}", kind="hold", node=name, domain=domain, partition="p0", job="", gpus=8,
                at_ns=at_ns, case=f"c{number}", jobs=(), **fields)  # fmt: skip


def state() -> FleetState:
    """A big fleet on a bad day."""
    nodes = {f"n{i}": node(i) for i in range(NODES)}
    jobs = {}
    for i in range(NODES // 10):
        on = tuple(f"n{10 * i + k}" for k in range(10))
        jobs[f"j{i}"] = JobState(job=f"j{i}", nodes=on, gpus=80, checkpoint="saved")
    past = [hold(i, f"n{i * 20}", f"r{i * 20 // 16}", NOW - i * 120 * SECOND - 1) for i in range(500)]
    fence = Fence(holder="a", generation=1, until_ns=NOW + 29 * SECOND)
    return FleetState(mode="act", paused="", nodes=nodes, jobs=jobs, past=tuple(past), actionable=(), breaker_ns=0,
                      others="", fence=fence)  # fmt: skip


def ask(number: int, kind: str, name: str) -> Proposal:
    """One proposal of a case of its own."""
    return Proposal(
        id=f"a{number}",
        case=f"case{number}",
        incident="i",
        fault_class="gpu_lost",
        playbook="p",
        step=1,
        kind=kind,
        node=name,
        reason="r",
        gpus=80,
        evidence=(FATAL,),
        job=f"j{int(name[1:]) // 10}" if kind == "move_job" else "",
    )


def timed(of: FleetState, count: int) -> list[float]:
    """Milliseconds of CPU of each decision, of mixed kinds on random nodes."""
    rng, took = random.Random(0), []
    for number in range(count):
        proposal = ask(number, rng.choice(("hold", "move_job", "reboot")), f"n{rng.randrange(NODES)}")
        start = time.process_time()
        verdict = authorise(of, proposal, NOW)
        took.append((time.process_time() - start) * 1e3)
        assert len(verdict.gates) == 11
    return sorted(took)


def storm(of: FleetState, seed: int) -> tuple[float, int]:
    """Return seconds of CPU for a storm's proposals, asked one by one as it grows, and how many acted."""
    rng = random.Random(seed)
    hit = rng.sample(list(of.nodes), FINDINGS)
    start, acted, tripped = time.process_time(), 0, 0
    of = replace(of, nodes=Inventory(of.nodes))
    for number, name in enumerate(hit):
        seen = tuple((each, NOW - SECOND) for each in hit[: number + 1])
        now = replace(of, actionable=seen, breaker_ns=tripped)
        verdict = authorise(now, ask(number, "hold", name), NOW)
        tripped = tripped or (NOW if verdict.trips_breaker else 0)
        if verdict.effect == "act":
            acted += 1
            done = hold(10_000 + number, name, of.nodes[name].domain, NOW, open=True)
            of = replace(of, past=(*of.past, done))
    return time.process_time() - start, acted


def main() -> None:
    """Print both."""
    quick = "--quick" in sys.argv
    of = state()
    for name, given, count in [
        ("counted before", replace(of, nodes=Inventory(of.nodes)), 2000 if not quick else 300),
        ("plain", of, 200 if not quick else 30),
    ]:
        took = timed(given, count)
        print(
            f"authorise, {NODES} nodes, {name}: p50 {took[len(took) // 2]:.2f} ms, "
            f"p99 {took[int(len(took) * 0.99)]:.2f} ms, worst {took[-1]:.2f} ms, n {count}"
        )
    runs = [storm(of, seed) for seed in range(STORMS if not quick else 3)]
    worst, total = max(took for took, _ in runs), sum(took for took, _ in runs)
    print(
        f"{len(runs)} storms of {FINDINGS} findings, {NODES} nodes: worst {worst:.2f} s, all {total:.1f} s, "
        f"at most {max(acted for _, acted in runs)} holds a storm"
    )


if __name__ == "__main__":
    main()
