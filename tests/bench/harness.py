"""What the benchmarks share: real processes, their cost from /proc, percentiles and tables with bounds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = [str(ROOT / name) for name in ("agent", "collector", "detectors", "protos")]
for _root in reversed(SOURCE_ROOTS):  # `python tests/bench/bench_x.py` works without an install
    if _root not in sys.path:
        sys.path.insert(0, _root)


def environment() -> dict[str, str]:
    """The environment of every process under test."""
    roots = [*SOURCE_ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(roots), "HOME": "/nonexistent"}


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def write_toml(path: Path, tables: dict[str, dict[str, object]]) -> Path:
    """Write a config; the table "" holds the top-level keys."""
    lines = []
    for table, values in tables.items():
        lines += [f"[{table}]"] if table else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass
class Lab:
    """A temporary directory and the processes of one benchmark; all are gone when it is left."""

    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="gpuvigil-bench-")))
    processes: list[tuple[str, subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 12 s, by process id."""
        for _, process, _ in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 12
        for _, process, _ in self.processes:
            try:
                process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.processes.clear()

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Run a command that logs into the lab's directory."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment(), cwd=self.directory,
            )  # fmt: skip
        self.processes.append((name, process, log))
        return process

    def check(self) -> None:
        """Stop the benchmark with the last lines of a process that died."""
        for name, process, log in self.processes:
            if process.poll() is not None:
                raise SystemExit(f"{name} ended ({process.returncode}):\n{log.read_text()[-2000:]}")

    def module(self, name: str, module: str, config: Path) -> subprocess.Popen[bytes]:
        """Run one of our daemons."""
        return self.start(name, [sys.executable, "-m", module, "--config", str(config)])


@dataclass(frozen=True)
class Collector:
    """A running collector: its process and addresses."""

    process: subprocess.Popen[bytes]
    grpc: str
    url: str


def start_collector(lab: Lab, **ingest: object) -> Collector:
    """Start a collector on free ports and wait until its API answers."""
    grpc, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    state = str(lab.directory / f"collector-{http.rpartition(':')[2]}")
    tables: dict[str, dict[str, object]] = {
        "": {"state_directory": state, "log_level": "warning"},
        "ingest": {"address": grpc, **ingest},
        "web": {"address": http},
        "detection": {"learn": "60s"},  # so that what is measured has statistics that judge
    }
    process = lab.module(
        "collector", "gpuvigil_collector", write_toml(lab.directory / "collector.toml", tables)
    )
    collector = Collector(process, grpc, f"http://{http}")
    wait_for(lambda: get_json(f"{collector.url}/api/v1/health") is not None, 60, "the collector's API", lab)
    return collector


def wait_for(done: object, seconds: float, what: str, lab: Lab) -> None:
    """Poll a callable until it is true; the deadline ends the benchmark."""
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        lab.check()
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def get_text(url: str) -> str | None:
    """GET with a deadline; None when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return None


def get_json(url: str) -> dict | None:
    """GET one JSON object; None when nothing answers."""
    text = get_text(url)
    return None if text is None else json.loads(text)


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants that live."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time so far, /proc/PID/stat; what died in between is left out."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_mib(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """RSS and PSS in MiB, from /proc/PID/smaps_rollup; PSS shares what is shared."""
    rss = pss = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                word = line.split()
                rss += int(word[1]) if word[0] == "Rss:" else 0
                pss += int(word[1]) if word[0] == "Pss:" else 0
    return rss / 1024, pss / 1024


def metric(text: str | None, name: str, **labels: str) -> float:
    """Sum of a metric's samples in an exposition, those with these labels; NaN when there is none."""
    found = [value for given, value in samples(text or "", name) if labels.items() <= given.items()]
    return sum(found) if found else math.nan


def samples(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """All samples of one metric name: labels and value."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


def histogram_quantile(
    before: str, after: str, name: str, q: float, **labels_wanted: str
) -> tuple[float, int]:
    """Upper edge of the bucket that holds the quantile between two scrapes; number of observations."""
    counts: dict[float, float] = {}
    for sign, text in ((-1, before), (1, after)):
        for labels, value in samples(text, f"{name}_bucket"):
            if not labels_wanted.items() <= labels.items():
                continue
            edge = float(labels["le"])
            counts[edge] = counts.get(edge, 0.0) + sign * value
    total = max(counts.values(), default=0)
    edges = sorted(edge for edge, count in counts.items() if total and count >= q * total)
    return (edges[0] if edges else math.nan), int(total)


def mean_with_bounds(values: Sequence[float]) -> str:
    """`mean ± half width of the 95 % interval (n)` of windows taken one after the other."""
    if len(values) < 2:
        return f"{values[0]:.2f} (n=1)" if values else "-"
    half = 2.0 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {half:.2f} (n={len(values)})"


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share q of all do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def machine() -> str:
    """What the figures were measured on."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    memory = psutil.virtual_memory().total / 2**30
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {system}"
