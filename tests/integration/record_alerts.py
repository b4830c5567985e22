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
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from integration import stack
from integration.promtool_file import record
from integration.recorded_site import SEED, STEP_S, Site, job
from integration.wire_client import Wire, batch, block, channel, event, gap

from gpuvigil_protos.v1 import stream_pb2 as pb

# kind, fields, alert that must tell of it
FAULTS = (
    ("gpu_lost_xid79", "gpu = 1", "GpuvigilGpuFailed"),
    ("ecc_uncorrectable", "gpu = 0", "GpuvigilGpuMemoryFault"),
    ("power_brake", "gpu = 1", "GpuvigilGpuSlow"),
    ("driver_hang", "gpu = 0", "GpuvigilDriverHang"),
    ("pcie_downgrade", "gpu = 1", "GpuvigilGpuLinkFault"),
    ("nic_down", "", "GpuvigilNetworkFault"),
    ("disk_filling", "", "GpuvigilStorageFault"),
)
_WARM_UP_S = 50


def scenario(folder: Path) -> Path:
    """One fault a node, 4 s apart, after the warm-up."""
    tables = [
        f'[[fault]]\nkind = "{kind}"\nnode = "sim-{number}"\nat = "{_WARM_UP_S + 4 * number}s"\n{fields}\n'
        for number, (kind, fields, _) in enumerate(FAULTS)
    ]
    path = folder / "scenario.toml"
    path.write_text("version = 1\n" + "".join(tables))
    return path


def fleet(site: Site) -> None:
    """Seven nodes with a fault each, one out of memory, a killed rank, a silent node, then two more."""
    site.start()
    site.scrape()
    simulate = f'gpus = 2\nseed = {SEED}\nstart_ns = {time.time_ns()}\nscenario = "{scenario(site.folder)}"\n'
    for number in range(len(FAULTS)):
        site.agent(f"sim-{number}", f'{simulate}truth_file = "{site.folder}/truth-{number}.jsonl"')
    quiet = [site.agent(f"quiet-{n}", f"gpus = 2\nseed = {SEED}") for n in range(3)]
    with job(site) as ranks:
        time.sleep(_WARM_UP_S + 25)
        fires = [("GpuvigilHostFault", time.time(), ',node="wire",class="oom"', 0)]
        asyncio.run(_out_of_memory(site))
        os.kill(ranks[1], signal.SIGKILL)
        fires += [("GpuvigilJobFault", time.time(), ',node="trainer",class="process_dead"', 0)]
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
        time.sleep(75)
        for number, (_, _, alert) in enumerate(FAULTS):
            truth = json.loads((site.folder / f"truth-{number}.jsonl").read_text().splitlines()[0])
            fires.append(
                (alert, truth["injected_ns"] / 1e9, f',node="sim-{number}",class="{truth["class"]}"', 0)
            )
        site.write("fleet", fires)


async def _out_of_memory(site: Site) -> None:
    """A kernel line of one more node, as its agent sends it: the simulator has no such fault."""
    async with channel(f"127.0.0.1:{site.grpc}") as dial:
        wire = Wire(dial, node="wire")
        await wire.open()
        line = {"kind": pb.EVENT_KIND_KERNEL, "entity": "node", "code": 0, "fields": {"rule": "oom_kill"}}
        await wire.send(event(1, text="Out of memory: Killed process 4242 (python)", **line))
        await wire.until_durable(1, pb.CLASS_EVENTS)


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

        async def sick(number: int) -> None:
            async with channel(f"127.0.0.1:{site.grpc}") as own_dial:
                one = Wire(own_dial, node=f"wire-{number}", inventory=lost)
                await one.open()
                await one.send(event(1, text="NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."))
                await one.until(lambda wire: wire.durable.get(pb.CLASS_EVENTS), 60)
                await one.close()

        for first in range(0, 130, 10):
            await asyncio.gather(*(sick(number) for number in range(first, first + 10)))
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
    token = (site.folder / "collector" / "admin.token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{site.web}/api/v1/test-alert?for=30s",
        method="POST",
        headers={"X-Gpuvigil-Request": "1", "Authorization": f"Bearer {token}"},
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
