"""What the agent costs its node: CPU, memory, driver calls and bytes, beside two well-known exporters.

One run, all at 1 Hz on the same host: our agent (8 simulated H100s and the real host) streaming to a real
collector, prometheus-node-exporter scraped, nvitop-exporter over the same simulated driver scraped; then a
while with the agent's own endpoint scraped at 1 Hz as well, which its stream makes needless. The simulated
driver's own CPU is measured inside the driver process and shown apart.
usage: bench_agent_footprint.py [--quick] [--seconds 300]
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import harness

WARM_UP_SECONDS = 20
WINDOWS = 10
SCRAPED_SHARE = 4  # the second phase lasts this part of the first
CPU_MAX_PERCENT = 1.5
PSS_MAX_MIB = 64


@dataclass
class Subject:
    """One program under measurement: its process, where to scrape it, and what was seen."""

    name: str
    pid: int
    url: str
    cpu: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    body_bytes: int = 0
    before: str = ""
    after: str = ""


def start_agent(lab: harness.Lab, collector: harness.Collector) -> Subject:
    """Start the agent: simulated GPUs, real host."""
    port = harness.free_port()
    tables: dict[str, dict[str, object]] = {
        "": {"node": "bench-00", "state_directory": str(lab.directory / "agent"), "log_level": "warning"},
        "collector": {"address": collector.grpc},
        "gpu": {"source": "simulated"},
        "metrics": {"address": f"127.0.0.1:{port}"},
        "simulate": {"gpus": 8, "profile": "h100", "host": False},
    }
    process = lab.module("agent", "gpuvigil_agent", harness.write_toml(lab.directory / "agent.toml", tables))
    return Subject("gpuvigil-agent", process.pid, f"http://127.0.0.1:{port}/metrics")


def start_peers(lab: harness.Lab) -> tuple[list[Subject], list[str]]:
    """Start the peers that this machine has; say why another is missing."""
    found, missing = [], []
    if shutil.which("prometheus-node-exporter"):
        port = harness.free_port()
        process = lab.start(
            "node_exporter", ["prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{port}"]
        )
        found.append(Subject("node_exporter", process.pid, f"http://127.0.0.1:{port}/metrics"))
    else:
        missing.append("node_exporter: not measured, Debian's prometheus-node-exporter is not installed")
    if importlib.util.find_spec("nvitop_exporter"):
        port = harness.free_port()
        script = str(Path(__file__).with_name("nvitop_on_simulator.py"))
        process = lab.start("nvitop", [sys.executable, script, str(port)])
        found.append(Subject("nvitop-exporter (GPUs)", process.pid, f"http://127.0.0.1:{port}/metrics"))
    else:
        missing.append("nvitop-exporter: not measured, it is not installed (pip install nvitop-exporter)")
    return found, missing


def scrape(subjects: list[Subject]) -> None:
    """Read every endpoint once."""
    for subject in subjects:
        subject.after = harness.get_text(subject.url) or ""
        subject.body_bytes = len(subject.after)


def run(lab: harness.Lab, subjects: list[Subject], scraped: list[Subject], seconds: float) -> None:
    """Scrape some at 1 Hz; note CPU of every window, and memory at its end, of all."""
    scrape(subjects)
    for subject in subjects:
        subject.before = subject.after
    for _ in range(WINDOWS):
        began = {s.name: harness.cpu_seconds(harness.tree(s.pid)) for s in subjects}
        at = time.monotonic()
        _scrape_for(scraped, seconds / WINDOWS)
        lab.check()
        for subject in subjects:
            processes = harness.tree(subject.pid)
            spent = harness.cpu_seconds(processes) - began[subject.name]
            subject.cpu.append(100 * spent / (time.monotonic() - at))
            rss, pss = harness.memory_mib(processes)
            subject.rss.append(rss)
            subject.pss.append(pss)
    scrape(subjects)


def _scrape_for(subjects: list[Subject], seconds: float) -> None:
    end = time.monotonic() + seconds
    while (due := time.monotonic()) < end:
        scrape(subjects)
        time.sleep(max(0.0, min(1.0, end - due) - (time.monotonic() - due)))


def agent_rate(subject: Subject, seconds: float, name: str, what: str) -> float:
    """Rate a second of one of the agent's own counters over the run."""
    label = {"what": what}
    return (
        harness.metric(subject.after, name, **label) - harness.metric(subject.before, name, **label)
    ) / seconds


def simulation_percent(subject: Subject, lab: harness.Lab, seconds: float) -> float | None:
    """CPU of the simulated driver inside the subject, percent of a core; None where there is none."""
    if subject.name.startswith("gpuvigil-agent"):
        return agent_rate(subject, seconds, "gpuvigil_agent_driver_events_total", "simulation_us") / 1e4
    if subject.name.startswith("nvitop"):
        lab.stop()  # it says so when it ends; this is the last thing that is read
        found = re.search(r"simulation_cpu_seconds ([0-9.]+)", (lab.directory / "nvitop.log").read_text())
        return 100 * float(found[1]) / (seconds + WARM_UP_SECONDS) if found else None
    return None


def row(subject: Subject, simulation: float | None) -> list[str]:
    """One line of the table."""
    own = [share - (simulation or 0.0) for share in subject.cpu]
    return [
        subject.name,
        harness.mean_with_bounds(subject.cpu),
        "-" if simulation is None else f"{simulation:.2f}",
        harness.mean_with_bounds(own),
        f"{max(subject.pss):.1f}",
        f"{max(subject.rss):.1f}",
        str(subject.body_bytes),
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    seconds = 60.0 if options.quick else options.seconds
    print(f"## The agent beside its peers, {seconds:.0f} s at 1 Hz\n\n{harness.machine()}")
    with harness.Lab() as lab:
        agent = start_agent(lab, harness.start_collector(lab))
        peers, missing = start_peers(lab)
        for subject in (agent, *peers):
            harness.wait_for(lambda s=subject: harness.get_text(s.url) is not None, 60, subject.name, lab)
        _scrape_for(peers, WARM_UP_SECONDS)
        run(lab, [agent, *peers], peers, seconds)
        scraped = Subject("gpuvigil-agent, scraped too", agent.pid, agent.url)
        run(lab, [scraped], [scraped, *peers], seconds / SCRAPED_SHARE)
        processes = [f"{p.pid}: {' '.join(p.cmdline()[:5])}" for p in harness.tree(agent.pid)]
        rows = [row(agent, simulation_percent(agent, lab, seconds))]
        rows += [row(scraped, simulation_percent(scraped, lab, seconds / SCRAPED_SHARE))]
        rows += [row(s, simulation_percent(s, lab, seconds * (1 + 1 / SCRAPED_SHARE))) for s in peers]
    harness.print_table(
        "CPU in % of one core (mean of windows with 95 % bounds), memory in MiB (most of any window)",
        ("program", "CPU in all", "of it the simulated driver", "without it", "PSS", "RSS", "scrape bytes"),
        rows,
    )  # fmt: skip
    calls = agent_rate(agent, seconds, "gpuvigil_agent_driver_events_total", "calls")
    sent = agent_rate(agent, seconds, "gpuvigil_agent_stream_events_total", "bytes_sent")
    harness.print_table(
        "The agent's traffic", ("driver calls/s", "wire bytes/s", "processes"),
        [[f"{calls:.0f}", f"{sent:.0f}", len(processes)]],
    )  # fmt: skip
    print("", *processes, *missing, sep="\n")
    simulated = simulation_percent(agent, lab, seconds) or 0.0
    cpu = sum(agent.cpu) / len(agent.cpu) - simulated
    verdict = "met" if cpu <= CPU_MAX_PERCENT and max(agent.pss) <= PSS_MAX_MIB else "MISSED"
    print(
        f"\ntarget {CPU_MAX_PERCENT} % of a core and {PSS_MAX_MIB} MiB PSS: {verdict} "
        f"({cpu:.2f} %, {max(agent.pss):.1f} MiB)"
    )


if __name__ == "__main__":
    main()
