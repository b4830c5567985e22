"""A brain that dies: the next one judges what it had not, and remembers what holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from integration import stack
from integration.wire_client import Wire, channel, event

from gpuvigil_protos.v1 import stream_pb2 as pb

GRACE_S = 3
GPU = pb.Gpu(uuid="GPU-0", index=0, model="H100", pci_bus_id="0000:01:00.0", seen=True)


class Collector:
    """Collector processes on one state folder, whose incidents resolve soon."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.grpc, self.web = folder, stack.free_port(), stack.free_port()
        self.config = folder / "collector.toml"
        self.config.write_text(
            f'state_directory = "{folder}/collector"\n[detection]\nstatistical = false\n'
            f'[incidents]\nclear_after = "1s"\nrestore_grace = "{GRACE_S}s"\n'
            f'[ingest]\naddress = "127.0.0.1:{self.grpc}"\n'
            f'[ingest.recordings]\nflush_interval = "0.2s"\n[web]\naddress = "127.0.0.1:{self.web}"\n'
        )

    @contextlib.contextmanager
    def running(self):
        command = (sys.executable, "-m", "gpuvigil_collector", "--config", str(self.config))
        with stack.running(self.folder / "collector.log", *command) as process:
            stack.wait_for(self.health, 30, "the collector's API")
            yield process

    def ask(self, path: str):
        return json.loads(stack.fetch(f"http://127.0.0.1:{self.web}/api/v1/{path}"))

    def health(self):
        return self.ask("health")

    def incidents(self, state: str = "all"):
        found = self.ask(f"incidents?state={state}")["items"]
        return [incident for incident in found if incident["target"] == "n1/gpu:GPU-0"]

    def past_the_grace(self) -> bool:
        health = self.health()
        return health["now_ns"] - health["started_ns"] > (GRACE_S + 3) * 10**9

    def metric(self, start: str) -> float:
        page = stack.fetch(f"http://127.0.0.1:{self.web}/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in page if line.startswith(start))

    def xids(self) -> float:
        return self.metric("gpuvigil_xid_total{")


def kill_9(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


async def told(collector: Collector, sequence: int, **fields) -> None:
    """Send one event and return when it is durable."""
    async with channel(f"127.0.0.1:{collector.grpc}") as dial:
        wire = Wire(dial, inventory=pb.Inventory(gpus=[GPU], gpu_source="nvml"))
        await wire.open()
        await wire.send(event(sequence, **fields))
        await wire.until_durable(sequence, pb.CLASS_EVENTS)


def test_an_xid_that_was_durable_and_not_judged_is_judged_after_kill_9(tmp_path):
    collector = Collector(tmp_path)
    with collector.running() as process:
        os.kill(process.pid, signal.SIGSTOP)  # the brain stands still, its ingest worker does not
        asyncio.run(told(collector, 1))
        kill_9(process)
    with collector.running() as process:
        (incident,) = stack.wait_for(lambda: collector.incidents(state="open"), 20, "the incident")
        assert incident["class"] == "gpu_lost"
        assert collector.xids() == 1
        kill_9(process)
    with collector.running():
        stack.wait_for(collector.past_the_grace, 30, "the grace over")
        (again,) = collector.incidents()
        assert (again["id"], again["state"]) == (incident["id"], "open")
        assert collector.xids() == 0, "judged before: no news"


def test_an_incident_outlives_kill_9_for_as_long_as_its_xid_holds(tmp_path):
    collector = Collector(tmp_path)
    with collector.running() as process:
        asyncio.run(told(collector, 1, code=48))
        (incident,) = stack.wait_for(lambda: collector.incidents(state="open"), 20, "the incident")
        latency = "gpuvigil_ingest_ack_latency_seconds"
        stack.wait_for(lambda: collector.metric(f"{latency}_count") == 1, 10, "its acknowledgement counted")
        assert 0 < collector.metric(f"{latency}_sum") < 10
        kill_9(process)
    with collector.running():
        stack.wait_for(collector.past_the_grace, 30, "the grace over")
        (again,) = collector.incidents()
        assert (again["id"], again["state"]) == (incident["id"], "open")
        whole = collector.ask(f"incidents/{again['id']}")
        assert stack.life_of(whole) == ["opened"]
        assert [finding["rule"] for finding in whole["findings"]] == ["xid_48"]
        returned = {"kind": pb.EVENT_KIND_GPU_RETURNED, "origin": pb.ORIGIN_DRIVER, "code": 0}
        asyncio.run(told(collector, 2, **returned))
        stack.wait_for(lambda: not collector.incidents(state="open"), 20, "the end of the incident")


def test_what_ended_before_kill_9_does_not_come_back(tmp_path):
    collector = Collector(tmp_path)
    with collector.running() as process:
        asyncio.run(told(collector, 1, code=48))
        stack.wait_for(lambda: collector.incidents(state="open"), 20, "the incident")
        asyncio.run(told(collector, 2, kind=pb.EVENT_KIND_GPU_RETURNED, origin=pb.ORIGIN_DRIVER, code=0))
        stack.wait_for(lambda: not collector.incidents(state="open"), 20, "the end of the incident")
        kill_9(process)
    with collector.running():
        stack.wait_for(collector.past_the_grace, 30, "the grace over")
        (past,) = collector.incidents()
        assert past["state"] == "resolved"
        assert stack.life_of(collector.ask(f"incidents/{past['id']}")) == ["opened", "resolved"]
