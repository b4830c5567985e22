"""A real Prometheus scrapes agent and collector once a second; a query shows the injected Xid."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from integration import stack

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.timeout(240)]

SCENARIO = """version = 1
[[fault]]
kind = "gpu_lost_xid79"
node = "sim-1"
gpu = 1
at = "15s"
"""
SCRAPE = """global:
  scrape_interval: 1s
scrape_configs:
  - job_name: gpuvigil-collector
    static_configs: [{{targets: ["127.0.0.1:{web}"]}}]
  - job_name: gpuvigil-agent
    static_configs: [{{targets: ["127.0.0.1:{metrics}"]}}]
"""


class Ports(NamedTuple):
    """Where each server listens."""

    grpc: int
    web: int
    metrics: int
    prometheus: int


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """Collector, one simulated node whose GPU 1 falls off the bus, and Prometheus."""
    folder = tmp_path_factory.mktemp("prometheus")
    ports = Ports(*(stack.free_port() for _ in range(4)))
    (folder / "scenario.toml").write_text(SCENARIO)
    (folder / "prometheus.yml").write_text(SCRAPE.format(web=ports.web, metrics=ports.metrics))
    simulate = f'gpus = 2\nscenario = "{folder}/scenario.toml"\nstart_ns = {time.time_ns()}'
    with contextlib.ExitStack() as started:
        started.enter_context(stack.collector(folder, ports.grpc, ports.web))
        started.enter_context(stack.agent(folder, "sim-1", ports.grpc, ports.metrics, simulate))
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
        ]
        command += [f"--web.listen-address=127.0.0.1:{ports.prometheus}", "--log.level=warn"]
        started.enter_context(stack.running(folder / "prometheus.log", *command))
        yield ports


def query(ports: Ports, expression: str) -> list[dict[str, object]]:
    """Ask Prometheus for an instant vector."""
    text = urllib.parse.quote(expression)
    answer = json.loads(stack.fetch(f"http://127.0.0.1:{ports.prometheus}/api/v1/query?query={text}"))
    return list(answer["data"]["result"])


@pytest.mark.parametrize("which", ["metrics", "web"])
def test_both_targets_are_up_and_scraped_each_second(ports: Ports, which: str) -> None:
    """Prometheus itself says that the scrape works and how many samples it took."""
    instance = f"127.0.0.1:{getattr(ports, which)}"
    up = f'up{{instance="{instance}"}} == 1 and scrape_samples_scraped{{instance="{instance}"}} > 20'
    stack.wait_for(lambda: query(ports, up), 60, f"{which} endpoint up in Prometheus")
    enough = f'count_over_time(up{{instance="{instance}"}}[10s]) >= 8'
    stack.wait_for(lambda: query(ports, enough), 40, f"{which} scraped once a second")


def test_a_query_shows_the_injected_xid(ports: Ports) -> None:
    """The Xid is a counter with the number as a label, by node and GPU, from both endpoints."""
    for endpoint in (ports.metrics, ports.web):
        ask = f'gpuvigil_xid_total{{instance="127.0.0.1:{endpoint}",node="sim-1",gpu="1",xid="79"}} >= 1'
        found = stack.wait_for(lambda ask=ask: query(ports, ask), 60, f"Xid 79 by {ask}")
        assert len(found) == 1


def test_an_incident_is_counted_by_class(ports: Ports) -> None:
    """The collector's endpoint shows the open incident."""
    ask = 'sum(gpuvigil_incidents_open{class="gpu_lost"})'
    stack.wait_for(lambda: [r for r in query(ports, ask) if r["value"][1] == "1"], 60, ask)


@pytest.mark.parametrize("which", ["metrics", "web"])
def test_promtool_finds_nothing_to_say(ports: Ports, which: str) -> None:
    """`promtool check metrics` is clean on the live endpoint, with a fault in it."""
    text = stack.wait_for(lambda: stack.fetch(f"http://127.0.0.1:{getattr(ports, which)}/metrics"), 60, which)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_shipped_scrape_config_is_valid() -> None:
    """`promtool check config` accepts deploy/prometheus/prometheus.yml."""
    file = Path(__file__).resolve().parents[2] / "deploy/prometheus/prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
