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
import math
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import harness
import load_generator
import node_profile

NODES_PER_GENERATOR = 500
STEP = 1.5
SETTLE_SECONDS = 15.0
LEARNED_SECONDS = 100.0  # by then the statistical stage has learned, and costs what it costs for good
RAISED_SECONDS = 40.0
RAISED_SETTLE_SECONDS = 75.0
SATURATED = 0.9  # of a core: a process of one busy thread has no more to give
WINDOW_SECONDS = 5.0
ACK_P99_MAX_S = 1.0
TICK_P99_MAX_S = 1.0


@dataclass
class Result:
    """One load level."""

    nodes: int
    seconds: float
    watched: float
    sent: int
    acked: int
    megabytes_s: float
    refused: dict[str, int]
    errors: dict[str, int]
    lost_streams: int
    ack: Counter[int]
    late: Counter[int]
    cpu_ingest: list[float]
    cpu_brain: list[float]
    cpu_generator: float
    rss_mib: float
    pss_mib: float
    tick_p99: float
    ticks: int

    def broken(self) -> list[str]:
        """Why this level is too much; empty while it holds."""
        reasons = [f"{count} refused: {reason}" for reason, count in self.refused.items()]
        reasons += [f"{count} x {error}" for error, count in self.errors.items()]
        if self.lost_streams:
            reasons.append(f"{self.lost_streams} streams lost")
        if self.acked < 0.98 * self.sent:
            reasons.append(f"only {self.acked} of {self.sent} batches acknowledged in the window")
        if quantile(self.ack, 0.99) > ACK_P99_MAX_S:
            reasons.append(f"p99 ack {quantile(self.ack, 0.99) * 1e3:.0f} ms")
        if not self.tick_p99 <= TICK_P99_MAX_S:
            reasons.append(f"p99 tick at most {self.tick_p99} s")
        if self.ticks < 0.9 * self.watched:
            reasons.append(f"{self.ticks} ticks in {self.watched:.0f} s")
        return reasons

    def limiting(self) -> str:
        """The process that was nearest to a whole core, and whether the generator kept its own times."""
        shares = {
            "ingest": statistics.fmean(self.cpu_ingest), "brain": statistics.fmean(self.cpu_brain),
            "generators": self.cpu_generator,
        }  # fmt: skip
        late = quantile(self.late, 0.99) * 1e3
        words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        busiest = max(shares, key=shares.__getitem__)
        full = f"{busiest} saturates its core" if shares[busiest] >= SATURATED else f"busiest is {busiest}"
        return (
            f"{full} ({words} of a core, {100 * sum(shares.values()):.0f} % of "
            f"{100 * (os.cpu_count() or 1)} % in all; generator late p99 {late:.0f} ms)"
        )


def quantile(histogram: Counter[int], q: float) -> float:
    """Upper edge in seconds of the bucket that holds the quantile; NaN of nothing."""
    total, seen = sum(histogram.values()), 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= q * total:
            return float(1e-4 * load_generator.LATENCY_STEP**bucket)
    return math.nan


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
        began = time.monotonic()
        ingest, brain, rss, pss = watch(collector, seconds - 4)
        after = harness.get_text(f"{collector.url}/metrics") or ""
        watched = time.monotonic() - began
        outputs = [finish(lab, process) for process in generators]
        tick, ticks = harness.histogram_quantile(before, after, "gpuvigil_tick_duration_seconds", 0.99)
        return combine(nodes, seconds, watched, outputs, ingest, brain, rss, pss, tick, ticks)


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
        errors=merged("errors"), lost_streams=sum(o["lost_streams"] for o in outputs), ack=merged("latency"),
        late=merged("late"), cpu_ingest=ingest, cpu_brain=brain,
        cpu_generator=sum(o["cpu_s"] for o in outputs) / seconds,
        rss_mib=rss, pss_mib=pss, tick_p99=tick, ticks=ticks,
    )  # fmt: skip


def row(result: Result) -> list[str]:
    """One line of the table."""

    def milliseconds(histogram: Counter[int], q: float) -> str:
        return f"{quantile(histogram, q) * 1e3:.1f}"

    return [
        str(result.nodes), f"{result.sent / result.seconds:.0f}", f"{result.megabytes_s:.2f}",
        harness.mean_with_bounds([100 * share for share in result.cpu_ingest]),
        harness.mean_with_bounds([100 * share for share in result.cpu_brain]),
        f"{100 * result.cpu_generator:.0f}",
        f"{result.rss_mib:.0f} / {result.pss_mib:.0f}",
        f"{milliseconds(result.ack, 0.5)} / {milliseconds(result.ack, 0.99)} (n={sum(result.ack.values())})",
        f"<= {result.tick_p99:g} s (n={result.ticks})", "; ".join(result.broken()) or "holds",
    ]  # fmt: skip


HEADER = (
    "nodes", "batches/s", "MB/s", "ingest CPU %", "brain CPU %", "generator CPU %", "RSS / PSS MiB",
    "ack p50 / p99 ms", "tick p99", "verdict",
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
