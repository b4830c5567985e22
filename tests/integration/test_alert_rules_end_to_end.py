"""mode = "rules" end to end: collector, Prometheus at 1 s, the shipped rules, Alertmanager, webhook."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration import stack
from integration.alert_stack import Replica, webhook
from integration.wire_client import Wire, channel, event

from gpuvigil_protos.v1 import stream_pb2 as pb

pytestmark = [pytest.mark.needs_alertmanager, pytest.mark.needs_prometheus, pytest.mark.timeout(240)]
GPU = pb.Gpu(uuid="GPU-0", index=0, model="H100", pci_bus_id="0000:01:00.0", seen=True)
PROMETHEUS = """global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}/*.yml"]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
scrape_configs:
  - job_name: gpuvigil-collector
    static_configs: [{{targets: [{targets}]}}]
"""


class Collector:
    """A real collector process whose incidents resolve soon."""

    def __init__(self, folder: Path, alerting: str) -> None:
        folder.mkdir()
        self.folder, self.grpc, self.web = folder, stack.free_port(), stack.free_port()
        self.url = f"http://127.0.0.1:{self.web}"
        (folder / "collector.toml").write_text(
            f'state_directory = "{folder}/state"\n[detection]\nstatistical = false\n'
            f'[incidents]\nclear_after = "1s"\n[ingest]\naddress = "127.0.0.1:{self.grpc}"\n'
            f'[web]\naddress = "127.0.0.1:{self.web}"\n[alerting]\n{alerting}\n'
        )

    @contextlib.contextmanager
    def running(self):
        config = f"{self.folder}/collector.toml"
        with stack.running(
            self.folder / "log", sys.executable, "-m", "gpuvigil_collector", "--config", config
        ) as made:
            stack.wait_for(lambda: self.ask("health"), 60, "the collector's API")
            yield made

    def ask(self, path):
        return json.loads(stack.fetch(f"{self.url}/api/v1/{path}"))

    def metric(self, start):
        page = stack.fetch(f"{self.url}/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in page if line.startswith(start))

    def told(self, sequence, **fields):
        asyncio.run(self._told(sequence, fields))

    async def _told(self, sequence, fields):
        async with channel(f"127.0.0.1:{self.grpc}") as dial:
            wire = Wire(dial, inventory=pb.Inventory(gpus=[GPU], gpu_source="nvml"))
            await wire.open()
            await wire.send(event(sequence, **fields))
            await wire.until_durable(sequence, pb.CLASS_EVENTS)

    def test_alert(self, *more):
        command = [sys.executable, "-m", "gpuvigil.cli", "test-alert", "--url", self.url, *more]
        command += ["--token-file", f"{self.folder}/state/admin.token"]
        return subprocess.run(command, env=stack.environment(), capture_output=True, text=True, timeout=90)


RETURNED = {"kind": pb.EVENT_KIND_GPU_RETURNED, "origin": pb.ORIGIN_DRIVER, "code": 0}


@contextlib.contextmanager
def prometheus(folder, alertmanager, *collectors):
    targets = ", ".join(f'"127.0.0.1:{one.web}"' for one in collectors)
    (folder / "prometheus.yml").write_text(
        PROMETHEUS.format(
            rules=stack.ROOT / "deploy/prometheus/rules", alertmanager=alertmanager, targets=targets
        )
    )
    command = (
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{stack.free_port()}", "--log.level=warn",
        "--rules.alert.resend-delay=2s",
    )  # fmt: skip
    with stack.running(folder / "prometheus.log", *command) as process:
        yield process


@pytest.mark.slow
def test_rules_tell_of_an_incident_once_for_two_collectors_and_of_a_test(tmp_path):
    with webhook() as hook, contextlib.ExitStack() as running:
        replica = Replica(tmp_path, hook)
        running.enter_context(replica.run())
        known = f'alertmanagers = ["{replica.url}"]\nsilences_interval = "1s"'
        pair = [Collector(tmp_path / name, known) for name in ("a", "b")]
        for one in pair:
            running.enter_context(one.running())
        running.enter_context(prometheus(tmp_path, replica.port, *pair))
        stack.wait_for(lambda: hook.alerts("firing", "GpuvigilWatchdog"), 60, "the Watchdog")
        assert [a for a in hook.alerts("firing") if a["labels"]["alertname"] != "GpuvigilWatchdog"] == []
        for one in pair:
            one.told(1, code=48)
        (alert, *more) = stack.wait_for(
            lambda: hook.alerts("firing", "GpuvigilGpuMemoryFault"), 60, "the alert"
        )
        assert alert["labels"]["node"] == "n1" and alert["labels"]["severity"] == "critical"
        assert not {"instance", "job", "synthetic"} & alert["labels"].keys()
        ids = {one.ask("incidents")["items"][0]["id"] for one in pair}
        said = alert["annotations"]["description"]
        assert "on n1 gpu:GPU-0, GPU 0; gpuvigil why" in said and said[-8:] in ids

        done = pair[0].test_alert("--for", "60s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"ok  127.0.0.1:{replica.port}: firing" in done.stdout
        stack.wait_for(lambda: hook.alerts("firing", "GpuvigilTestAlert"), 30, "the test at the webhook")
        assert hook.alerts("firing", "GpuvigilTestAlert")[0]["labels"]["synthetic"] == "true"

        for one in pair:
            one.told(2, **RETURNED)
        # keep_firing_for: a minute after the incidents' end
        stack.wait_for(lambda: hook.alerts("resolved", "GpuvigilGpuMemoryFault"), 120, "the end")
        time.sleep(3)
        assert len(hook.alerts("resolved", "GpuvigilGpuMemoryFault")) == 1
        assert more == [] and len(hook.alerts("firing", "GpuvigilGpuMemoryFault")) == 1


@pytest.mark.slow
def test_o6_two_collectors_post_one_alert_and_rules_keep_quiet(tmp_path):
    """mode = "api" in two real collectors, the rules loaded beside: one alert, its end told once."""
    with webhook() as hook, contextlib.ExitStack() as running:
        replica = Replica(tmp_path, hook)
        running.enter_context(replica.run())
        pair = [
            Collector(tmp_path / name, f'mode = "api"\nresend = "30s"\nalertmanagers = ["{replica.url}"]')
            for name in ("a", "b")
        ]
        first, _ = [running.enter_context(one.running()) for one in pair]
        running.enter_context(prometheus(tmp_path, replica.port, *pair))
        stack.wait_for(lambda: hook.alerts("firing", "GpuvigilWatchdog"), 60, "the Watchdog")
        for one in pair:
            one.told(1, code=48)
        sent = "gpuvigil_alertmanager_alerts_sent_total{"
        stack.wait_for(lambda: all(one.metric(sent) for one in pair), 30, "both have posted")
        stack.wait_for(lambda: hook.alerts("firing", "GpuvigilGpuMemoryFault"), 30, "the alert")
        assert pair[0].ask("incidents")["items"][0]["id"] != pair[1].ask("incidents")["items"][0]["id"]
        stack.wait_for(lambda: all(one.metric(sent) >= 2 for one in pair), 60, "sent again within 3 minutes")
        assert len(replica.alerts(alertname="GpuvigilGpuMemoryFault")) == 1
        assert len(hook.alerts("firing", "GpuvigilGpuMemoryFault")) == 1
        first.kill()
        first.wait(10)
        running.enter_context(pair[0].running())
        stack.wait_for(lambda: pair[0].metric(sent) >= 1, 60, "told again after kill -9")
        time.sleep(5)
        assert hook.alerts("resolved", "GpuvigilGpuMemoryFault") == []
        assert len(hook.alerts("firing", "GpuvigilGpuMemoryFault")) == 1
        done = pair[1].test_alert("--json")
        assert done.returncode == 0 and set(json.loads(done.stdout)["found"].values()) == {"firing"}
        for one in pair:
            one.told(2, **RETURNED)
        stack.wait_for(lambda: hook.alerts("resolved", "GpuvigilGpuMemoryFault"), 60, "the end")
        time.sleep(5)
        assert len(hook.alerts("resolved", "GpuvigilGpuMemoryFault")) == 1
        assert all(one.metric("gpuvigil_alertmanager_alerts_waiting{") == 0 for one in pair)


def test_a_test_alert_that_does_not_arrive_is_status_1(tmp_path):
    """mode = "rules" and an Alertmanager that no Prometheus tells."""
    with webhook() as hook:
        replica = Replica(tmp_path, hook)
        made = Collector(tmp_path / "a", f'alertmanagers = ["{replica.url}"]')
        with replica.run(), made.running():
            done = made.test_alert("--for", "10s")
            assert done.returncode == 1 and f"NO  127.0.0.1:{replica.port}: absent" in done.stdout


@pytest.mark.slow
def test_h6_a_collector_that_dies_and_a_way_that_is_cut_are_noticed_outside(tmp_path):
    """The collector killed: an alert within 2 minutes. Prometheus killed: the Watchdog's alert ends."""
    with webhook() as hook, contextlib.ExitStack() as running:
        replica = Replica(tmp_path, hook)
        running.enter_context(replica.run())
        made = Collector(tmp_path / "a", "")
        process = running.enter_context(made.running())
        watching = running.enter_context(prometheus(tmp_path, replica.port, made))
        stack.wait_for(lambda: hook.alerts("firing", "GpuvigilWatchdog"), 60, "the Watchdog")
        time.sleep(3)
        assert hook.alerts("firing", "GpuvigilCollectorDown") == []
        process.kill()
        stack.wait_for(
            lambda: hook.alerts("firing", "GpuvigilCollectorDown"), 120, "the collector's end told"
        )
        watching.kill()
        stack.wait_for(lambda: hook.alerts("resolved", "GpuvigilWatchdog"), 120, "the Watchdog's silence")
