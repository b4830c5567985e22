"""Records the input series of `promtool test rules`: real collectors, scraped by a real Prometheus.

    export PYTHONPATH=agent:collector:detectors:protos:tests
    python -m integration.record_alerts fleet|normal|own|pair|stalled

Each run writes tests/fixtures/alerts/RUN.yml. What is expected of the alerts comes from what was injected and
when, as the simulators' truth files and this script's own clock say, not from what the rules made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from integration import stack
from integration.promtool_file import Fires, record, write
from integration.wire_client import Wire, batch, block, channel, event, gap

from gpuvigil_protos.v1 import stream_pb2 as pb

SEED = 7
STEP_S = 5
OUT = stack.ROOT / "tests/fixtures/alerts"
# kind, fields, alert that must tell of it
FAULTS = (
    ("memory_leak", "", "GpuvigilHostFault"),  # first: it takes longest to be seen
    ("gpu_lost_xid79", "gpu = 1", "GpuvigilGpuFailed"),
    ("ecc_uncorrectable", "gpu = 0", "GpuvigilGpuMemoryFault"),
    ("power_brake", "gpu = 1", "GpuvigilGpuSlow"),
    ("driver_hang", "gpu = 0", "GpuvigilDriverHang"),
    ("pcie_downgrade", "gpu = 1", "GpuvigilGpuLinkFault"),
    ("nic_down", "", "GpuvigilNetworkFault"),
    ("disk_filling", "", "GpuvigilStorageFault"),
)
_WARM_UP_S = 50


class Site:
    """One collector and the Prometheus that scrapes it."""

    def __init__(self, folder: Path, running: contextlib.ExitStack) -> None:
        self.folder, self.running = folder, running
        self.grpc, self.web, self.prometheus = (stack.free_port() for _ in range(3))

    def start(
        self, more: str = "", program: tuple[str, ...] = ("-m", "gpuvigil_collector")
    ) -> subprocess.Popen:
        config = self.folder / "collector.toml"
        config.write_text(
            f'state_directory = "{self.folder}/collector"\n[detection]\nstatistical = false\n'
            f'[ingest]\naddress = "127.0.0.1:{self.grpc}"\n[web]\naddress = "127.0.0.1:{self.web}"\n{more}'
        )
        command = (sys.executable, *program, "--config", str(config))
        process = self.running.enter_context(stack.running(self.folder / "collector.log", *command))
        stack.wait_for(lambda: self.ask("health"), 60, "the collector's API")
        return process

    def scrape(self, *also: int) -> None:
        """Start the Prometheus that scrapes this collector, and others at their web ports."""
        targets = ", ".join(f'"127.0.0.1:{port}"' for port in (self.web, *also))
        (self.folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {STEP_S}s}}\nscrape_configs:\n  - job_name: gpuvigil-collector\n"
            f"    static_configs: [{{targets: [{targets}]}}]\n"
        )
        prometheus = (
            "prometheus", f"--config.file={self.folder}/prometheus.yml", "--log.level=warn",
            f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address=127.0.0.1:{self.prometheus}",
        )  # fmt: skip
        self.running.enter_context(stack.running(self.folder / "prometheus.log", *prometheus))

    def ask(self, path: str) -> dict:
        return json.loads(stack.fetch(f"http://127.0.0.1:{self.web}/api/v1/{path}"))

    def agent(self, name: str, simulate: str, **more: str) -> subprocess.Popen:
        found = stack.agent(self.folder, name, self.grpc, stack.free_port(), simulate, **more)
        return self.running.enter_context(found)

    def write(self, run: str, fires: list, silent_day: bool = False) -> None:
        """fires: (alert, injected at, PromQL label matchers). Checked at the recording's end."""
        recording = record(self.prometheus, STEP_S)
        end_s = (recording.length - 1) * STEP_S
        rows = [
            Fires(
                alert=alert, after_s=max(0, recording.seconds(at_s) - STEP_S), by_s=by or end_s, labels=labels
            )
            for alert, at_s, labels, by in fires
        ]
        version = subprocess.run(["prometheus", "--version"], capture_output=True, text=True).stdout.split()[
            2
        ]
        command = f"python -m integration.record_alerts {run}"
        head = [
            f"Recorded by `{command}`, seed {SEED}, Prometheus {version}. Do not edit.",
            *(
                ["The recorded minutes go on by promtool's repetition until 24 h are full."]
                if silent_day
                else []
            ),
        ]
        write(OUT / f"{run}.yml", head, recording, rows, silent_day)


def scenario(folder: Path) -> Path:
    """One fault a node, 4 s apart, after the warm-up."""
    tables = [
        f'[[fault]]\nkind = "{kind}"\nnode = "sim-{number}"\nat = "{_WARM_UP_S + 4 * number}s"\n{fields}\n'
        for number, (kind, fields, _) in enumerate(FAULTS)
    ]
    path = folder / "scenario.toml"
    path.write_text("version = 1\n" + "".join(tables))
    return path


@contextlib.contextmanager
def job(site: Site) -> Iterator[list[int]]:
    """A training job of two ranks on its own node; yields the ranks' process ids."""
    socket = site.folder / "hook.sock"
    site.agent("trainer", "", source="none", hook=str(socket))
    stack.wait_for(socket.exists, 60, "the hook's socket")
    command = [sys.executable, str(Path(__file__).parent / "two_ranks.py"), str(socket)]
    process = subprocess.Popen(command, env=stack.environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait(10)


def fleet(site: Site) -> None:
    """Eight nodes with a fault each, a job whose rank is killed, a node that falls silent, then two more."""
    site.start()
    site.scrape()
    simulate = f'gpus = 2\nseed = {SEED}\nstart_ns = {time.time_ns()}\nscenario = "{scenario(site.folder)}"\n'
    for number in range(len(FAULTS)):
        site.agent(f"sim-{number}", f'{simulate}truth_file = "{site.folder}/truth-{number}.jsonl"')
    quiet = [site.agent(f"quiet-{n}", f"gpus = 2\nseed = {SEED}") for n in range(3)]
    with job(site) as ranks:
        time.sleep(_WARM_UP_S + 25)
        os.kill(ranks[1], signal.SIGKILL)
        fires = [("GpuvigilJobFault", time.time(), ',node="trainer",class="process_dead"', 0)]
        quiet[0].kill()
        silent_s = time.time()
        time.sleep(70)
        # later it is one incident of the fleet with the next two
        by_s = record(site.prometheus, STEP_S).seconds(time.time()) - STEP_S
        fires.append(("GpuvigilNodeSilent", silent_s, ',node="quiet-0"', by_s))
        at_s = time.time()
        quiet[1].kill()
        quiet[2].kill()
        fires.append(("GpuvigilBlindSpot", at_s, "", 0))
        time.sleep(95)
        for number, (_, _, alert) in enumerate(FAULTS):
            truth = json.loads((site.folder / f"truth-{number}.jsonl").read_text().splitlines()[0])
            fires.append(
                (alert, truth["injected_ns"] / 1e9, f',node="sim-{number}",class="{truth["class"]}"', 0)
            )
        site.write("fleet", fires)


def normal(site: Site) -> None:
    """A fleet without a fault: three minutes from its first second on. Without the job: where other work
    shares the machine, its steps are slow in truth, and that is told."""
    site.start()
    site.scrape()
    for number in range(4):
        site.agent(f"sim-{number}", f"gpus = 2\nseed = {SEED}")
    time.sleep(180)
    site.write("normal", [], silent_day=True)


def pair(site: Site) -> None:
    """Two collectors, of which one is killed."""
    site.start()
    other = site.folder / "other"
    other.mkdir()
    second = Site(other, site.running)
    process = second.start()
    site.scrape(second.web)
    time.sleep(30)
    at_s = time.time()
    process.kill()
    time.sleep(100)
    site.write("pair", [("GpuvigilCollectorReplicaDown", at_s, "", 0)])


def own(site: Site) -> None:
    """Everything that can go wrong with the collector itself, in mode api; its end is the last of it."""
    dead = stack.free_port()
    process = site.start(
        f'[alerting]\nmode = "api"\nalertmanagers = ["http://127.0.0.1:{dead}"]\n'
        '[incidents]\nopen_max = 55\n[ingest.recordings]\nflush_interval = "0.2s"\n'
    )
    site.scrape()
    fires = [("GpuvigilAlertsNotDelivered", time.time(), "", 0)]
    time.sleep(30)
    asyncio.run(_wires(site, fires))
    fires.append(("GpuvigilIngestWorkerRestarts", time.time(), "", 0))
    (worker,) = psutil.Process(process.pid).children()
    worker.kill()
    time.sleep(20)
    for alert in ("GpuvigilJournalFault", "GpuvigilCollectorUnhealthy"):
        fires.append((alert, 0 if "Unhealthy" in alert else time.time(), "", 0))
    journal = sqlite3.connect(site.folder / "collector/journal.sqlite", timeout=30, isolation_level=None)
    journal.execute("BEGIN EXCLUSIVE")  # as a disk that takes no more writes
    time.sleep(75)
    alive_s = time.time()
    journal.rollback()
    process.kill()
    time.sleep(90)
    recorded = record(site.prometheus, STEP_S)
    fires = [(alert, at_s, labels, recorded.seconds(alive_s) - STEP_S) for alert, at_s, labels, _ in fires]
    site.write("own", [*fires, ("GpuvigilCollectorDown", alive_s, "", recorded.seconds(alive_s) + 85)])


async def _wires(site: Site, fires: list) -> None:
    """A gap, a damaged batch, then 130 nodes with a lost GPU each."""
    async with channel(f"127.0.0.1:{site.grpc}") as dial:
        wire = Wire(dial)
        await wire.open()
        await wire.send(batch(1))
        await wire.until_durable(1)
        await asyncio.sleep(2 * STEP_S)
        fires.append(("GpuvigilLedgerLoss", time.time(), "", 0))
        await wire.send(batch(5, gaps=[gap(2, 4)]))
        await wire.until_durable(5)
        await asyncio.sleep(2 * STEP_S)
        fires.append(("GpuvigilMessagesRefused", time.time(), "", 0))
        bad = batch(6, [block([1.0, 2.0, 3.0])])
        bad.crc += 1
        await wire.send(bad)
        await wire.until(lambda wire: wire.refusals)
        await asyncio.sleep(2 * STEP_S)
        for alert in ("GpuvigilIncidentsNotOpened", "GpuvigilIncidentsNotShown"):
            fires.append((alert, time.time(), "", 0))
        lost = pb.Inventory(gpus=[pb.Gpu(uuid="GPU-0", index=0, model="H100", seen=True)], gpu_source="nvml")
        for number in range(130):
            sick = Wire(dial, node=f"wire-{number}", inventory=lost)
            await sick.open()
            await sick.send(event(1, text="NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."))
            await sick.until_durable(1, pb.CLASS_EVENTS)
            await sick.close()
        await asyncio.sleep(5 * STEP_S)


STALLED = """import os, sys, time
from gpuvigil_collector import pipeline
tick = pipeline.Pipeline.run
def stall(self, *given, **named):
    while os.path.exists(os.environ["GPUVIGIL_STALL"]):
        time.sleep(0.2)
    return tick(self, *given, **named)
pipeline.Pipeline.run = stall
from gpuvigil_collector.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def stalled(site: Site) -> None:
    """A test alert in mode rules; then the real collector's brain is made to stand, while its web answers."""
    program, flag = site.folder / "stalled.py", site.folder / "stall"
    program.write_text(STALLED.replace('os.environ["GPUVIGIL_STALL"]', repr(str(flag))))
    site.start(program=(str(program),))
    site.scrape()
    time.sleep(30)
    asked_s = time.time()
    request = urllib.request.Request(
        f"http://127.0.0.1:{site.web}/api/v1/test-alert?for=30s",
        method="POST",
        headers={"X-Gpuvigil-Request": "1"},
    )
    urllib.request.urlopen(request, timeout=10).read()
    time.sleep(45)
    at_s = time.time()
    flag.touch()
    time.sleep(85)
    recording = record(site.prometheus, STEP_S)
    asked = ("GpuvigilTestAlert", asked_s, "", recording.seconds(asked_s) + 15)
    site.write("stalled", [asked, ("GpuvigilCollectorStalled", at_s, "", 0)])
    flag.unlink()


RUNS = {"fleet": fleet, "normal": normal, "own": own, "pair": pair, "stalled": stalled}


def main(run: str) -> None:
    """Record one run."""
    with tempfile.TemporaryDirectory(prefix="gpuvigil-alerts-") as folder, contextlib.ExitStack() as running:
        RUNS[run](Site(Path(folder), running))


if __name__ == "__main__":
    main(sys.argv[1])
