"""How much one collector takes: 1,000 nodes of 8 GPUs at 1 Hz, then more until it breaks.

Generators are processes of their own, far cheaper than what they load; on a machine with more than 2 cores
the collector is pinned to 2 and the generators to the rest. The load grows by half until a level breaks, then
the step is halved once.
usage: bench_collector_load.py [--quick] [--nodes 1000] [--seconds 60] [--workers 1] [--no-break]
       [--nodes-max 12000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import harness
import node_profile
from load_result import HEADER, NODES_PER_GENERATOR, Result, row

STEP = 1.5
SETTLE_SECONDS = 15.0
LEARNED_SECONDS = 140.0  # by then the statistical stage has learned, and costs what it costs for good
RAISED_SECONDS = 40.0
RAISED_SETTLE_SECONDS = 140.0
WINDOW_SECONDS = 5.0


def pin(pid: int, cores: list[int]) -> None:
    """Keep a process and its children on some cores; nothing on a machine of 2."""
    if (os.cpu_count() or 1) > 2:
        for process in harness.tree(pid):
            process.cpu_affinity(cores)


def start_generators(
    lab: harness.Lab, collector: harness.Collector, profile: Path, nodes: int, seconds: float, settle: float
) -> list[subprocess.Popen[bytes]]:
    """Start the generator processes, each with its share of the nodes, and wait until all are connected."""
    started = []
    for first in range(0, nodes, NODES_PER_GENERATOR):
        share = min(NODES_PER_GENERATOR, nodes - first)
        command = [
            sys.executable, str(Path(__file__).with_name("load_generator.py")), "--address", collector.grpc,
            "--profile", str(profile), "--nodes", str(share), "--first", str(first),
            "--seconds", str(seconds), "--measure-after", str(settle),
        ]  # fmt: skip
        process = lab.start(f"generator-{first}", command)
        pin(process.pid, list(range(2, os.cpu_count() or 2)) or [0])
        started.append(process)
        log = lab.directory / f"generator-{first}.log"
        harness.wait_for(
            lambda log=log: log.read_text().startswith("connected"), 180, "a generator to connect", lab
        )
    return started


def measure(nodes: int, seconds: float, settle: float, profile: Path, workers: int) -> Result:
    """Run one level against a fresh collector."""
    with harness.Lab() as lab:
        capacity = 1 << 24 if nodes > 1000 else 1 << 20
        collector = harness.start_collector(lab, series_capacity=capacity, workers=workers)
        pin(collector.process.pid, [0, 1])
        generators = start_generators(lab, collector, profile, nodes, seconds, settle)
        time.sleep(settle + 2)  # the last generator's measured time begins within these 2 s
        before = harness.get_text(f"{collector.url}/metrics") or ""
        learning = harness.metric(before, "gpuvigil_learning") if settle >= RAISED_SETTLE_SECONDS else 0.0
        if learning != 0.0:
            raise SystemExit("the collector's statistics still learn: this would not be what it costs")
        began = time.monotonic()
        ingest, brain, rss, pss = watch(collector, seconds - 4)
        after = harness.get_text(f"{collector.url}/metrics") or ""
        watched = time.monotonic() - began
        outputs = [finish(lab, process) for process in generators]
        tick, ticks = harness.histogram_quantile(before, after, "gpuvigil_tick_duration_seconds", 0.99)
        return combine(
            nodes,
            seconds,
            watched,
            outputs,
            ingest,
            brain,
            rss,
            pss,
            tick,
            ticks,
            slowest_stage(before, after),
        )


def slowest_stage(before: str, after: str) -> str:
    """The stage with the highest p99 in the window."""
    stages = {
        labels["stage"] for labels, _ in harness.samples(after, "gpuvigil_stage_duration_seconds_count")
    }
    name = "gpuvigil_stage_duration_seconds"
    p99 = {s: harness.histogram_quantile(before, after, name, 0.99, stage=s)[0] for s in stages}
    worst = max(p99, key=p99.__getitem__)
    return f"{worst}, p99 <= {p99[worst]:g} s"


def watch(collector: harness.Collector, seconds: float) -> tuple[list[float], list[float], float, float]:
    """CPU shares of ingest and brain, window by window, and the memory of both at the end."""
    processes = harness.tree(collector.process.pid)
    brain, ingest = processes[:1], processes[1:]
    shares: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + seconds
    while time.monotonic() + WINDOW_SECONDS <= end or not shares[0]:
        began, at = [harness.cpu_seconds(group) for group in (ingest, brain)], time.monotonic()
        time.sleep(WINDOW_SECONDS)
        for share, group, earlier in zip(shares, (ingest, brain), began, strict=True):
            share.append((harness.cpu_seconds(group) - earlier) / (time.monotonic() - at))
    rss, pss = harness.memory_mib(processes)
    return *shares, rss, pss


def finish(lab: harness.Lab, process: subprocess.Popen[bytes]) -> dict:
    """Wait for a generator and read its totals."""
    code = process.wait(300)
    name, _, log = next(entry for entry in lab.processes if entry[1] is process)
    if code:
        raise SystemExit(f"{name} failed ({code}):\n{log.read_text()[-2000:]}")
    return json.loads(log.read_text().splitlines()[-1])


def combine(
    nodes: int,
    seconds: float,
    watched: float,
    outputs: list[dict],
    ingest: list[float],
    brain: list[float],
    rss: float,
    pss: float,
    tick: float,
    ticks: int,
    slowest: str,
) -> Result:
    """Sum the generators."""

    def merged(key: str) -> Counter:
        total: Counter = Counter()
        for output in outputs:
            total.update({int(k) if k.isdigit() else k: v for k, v in output[key].items()})
        return total

    return Result(
        nodes=nodes, seconds=seconds, watched=watched,
        sent=sum(o["sent"] for o in outputs), acked=sum(o["acked"] for o in outputs),
        megabytes_s=sum(o["bytes"] for o in outputs) / seconds / 1e6, refused=merged("refused"),
        errors=merged("errors"), lost_streams=sum(o["lost_streams"] for o in outputs), ack=merged("received"),
        durable=merged("durable"),
        late=merged("late"), cpu_ingest=ingest, cpu_brain=brain,
        cpu_generator=sum(o["cpu_s"] for o in outputs) / seconds,
        rss_mib=rss, pss_mib=pss, tick_p99=tick, ticks=ticks, slowest=slowest,
    )  # fmt: skip


def raise_until_broken(first: Result, options: argparse.Namespace, profile: Path) -> list[Result]:
    """Add half until a level breaks, then try half way back. Every level is printed as it ends."""
    results = [first]

    def level(nodes: int) -> Result:
        results.append(measure(nodes, RAISED_SECONDS, RAISED_SETTLE_SECONDS, profile, options.workers))
        harness.print_table(f"{nodes} nodes", HEADER, [row(results[-1])])
        return results[-1]

    while not results[-1].broken() and (nodes := round(results[-1].nodes * STEP)) <= options.nodes_max:
        level(nodes)
    if len(results) > 1 and results[-1].broken():
        level((results[-2].nodes + results[-1].nodes) // 2)
    return sorted(results, key=lambda result: result.nodes)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--nodes-max", type=int, default=12_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-break", action="store_true")
    options = parser.parse_args()
    seconds = 24.0 if options.quick else options.seconds
    settle = SETTLE_SECONDS if options.quick else LEARNED_SECONDS
    print(f"## Collector under load, {options.workers} ingest workers\n\n{harness.machine()}")
    with harness.Lab() as lab:
        path, profile = node_profile.capture(lab)
        harness.print_table(
            "Series of one node (H100 profile, 8 GPUs, captured)",
            ("period", "series", "bytes a tick"),
            node_profile.describe(profile),
        )
        first = measure(options.nodes, seconds, settle, path, options.workers)
        harness.print_table("Load", HEADER, [row(first)])
        results = [first] if options.no_break or options.quick else raise_until_broken(first, options, path)
    harness.print_table("Until it breaks", HEADER, [row(result) for result in results])
    for result in results:
        print(f"\n{result.nodes} nodes: {'breaks' if result.broken() else 'holds'}; {result.limiting()}")


if __name__ == "__main__":
    main()
