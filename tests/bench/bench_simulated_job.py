"""What a simulated job costs: the agent's own processes with and without one, and the job's ranks apart.

One simulated node of 8 GPUs that streams to a real collector; windows with a job of 8 ranks beside windows
without one, in turns, so that the machine's mood is in both. The ranks are processes of their own: their cost
is measured by itself and is none of the agent's.
usage: bench_simulated_job.py [--seconds 60] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import harness

JOB = 'version = 1\n[[job]]\nname = "bench"\nnodes = [0]\nranks_per_node = 8\nstep = "1s"\n'
WARM_UP_S = 15


def start(lab: harness.Lab, grpc: str, number: int, scenario: Path) -> subprocess.Popen[bytes]:
    """Start the node's agent."""
    folder = lab.directory / f"run-{number}"
    folder.mkdir()
    tables: dict[str, dict[str, object]] = {
        "": {"node": "bench-00", "state_directory": str(folder), "log_level": "warning"},
        "collector": {"address": grpc},
        "gpu": {"source": "simulated"},
        "hook": {"socket": str(folder / "hook.sock")},
        "metrics": {"address": ""},
        "simulate": {"gpus": 8, "scenario": str(scenario)},
    }
    config = harness.write_toml(folder / "agent.toml", tables)
    command = [sys.executable, "-m", "gpuvigil_agent", "--config", str(config)]
    return subprocess.Popen(command, env=harness.environment(), stderr=subprocess.DEVNULL)


def measure(pid: int, seconds: float) -> tuple[float, float, float, float]:
    """CPU percent of agent and of ranks, PSS MiB of both."""
    tree = harness.tree(pid)
    ranks = [one for one in tree if "gpuvigil_agent.simulate.job_node" in one.cmdline()]
    agent = [one for one in tree if one not in ranks]
    before, began = (harness.cpu_seconds(agent), harness.cpu_seconds(ranks)), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    spent = (harness.cpu_seconds(agent) - before[0], harness.cpu_seconds(ranks) - before[1])
    memory = harness.memory_mib(agent)[1], harness.memory_mib(ranks)[1] if ranks else 0.0
    return 100 * spent[0] / took, 100 * spent[1] / took, *memory


def main() -> None:
    """Run the rounds and print one line each, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 10, 1
    rows: dict[str, list[tuple[float, float, float, float]]] = {"no job": [], "8 ranks": []}
    with harness.Lab() as lab:
        collector = harness.start_collector(lab)
        for number in range(2 * options.rounds):
            name = ("no job", "8 ranks")[number % 2]
            scenario = lab.directory / f"s{number}.toml"
            scenario.write_text(JOB if number % 2 else "version = 1\n")
            process = start(lab, collector.grpc, number, scenario)
            try:
                time.sleep(WARM_UP_S)
                rows[name].append(measure(process.pid, options.seconds))
                print(name, *(f"{value:.2f}" for value in rows[name][-1]), flush=True)
            finally:
                process.terminate()
                process.wait(20)
    print("median: CPU % agent, CPU % ranks, PSS MiB agent, PSS MiB ranks")
    for name, found in rows.items():
        print(name, *(f"{statistics.median(column):.2f}" for column in zip(*found, strict=True)))


if __name__ == "__main__":
    main()
