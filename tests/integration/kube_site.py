"""A site on Kubernetes: a cluster of its own, a collector that may act, agents of simulated nodes."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from integration import stack
from integration.kube_lab import KubeLab
from integration.kube_things import make_node, node

GPUS = 8
HOME = "gpuvigil"
TAINT = {"key": "gpuvigil.io/gpu-error", "value": "held", "effect": "NoSchedule"}
POLICY = """
version = 1
[playbook.lost]
reason = "the simulated GPU comes back by itself: all of the way but the reboot"
steps = [
  { do = "capture_evidence", within = "30s" },
  { do = "checkpoint", within = "1min", when = "job", failed = "continue" },
  { do = "hold", within = "2min" },
  { do = "move_job", within = "5min", when = "job" },
  { do = "validate", within = "5min", when = "idle" },
  { do = "release", within = "2min" },
]
[class.gpu_lost]
playbook = "lost"
severity = "critical"
reason = "as above"
"""
COLLECTOR = """
state_directory = "{folder}/collector"
[ingest]
address = "127.0.0.1:{grpc}"
[web]
address = "127.0.0.1:{web}"
[incidents]
clear_after = "5s"
[remediation]
mode = "act"
scheduler = "kubernetes"
policy = "{folder}/policy.toml"
clean_wait = "5s"
[actuators.kubernetes]
kubeconfig = "{kubeconfig}"
namespace = "{home}"
"""
FAULT = """
version = 1
title = "a GPU is lost for a while"
[[fault]]
kind = "gpu_lost_xid79"
node = "{node}"
gpu = 1
at = "{at}s"
duration = "{lasts}s"
"""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[KubeLab]:
    """Run a cluster with the collector's namespace and Lease, as observe.yaml makes them."""
    lab = KubeLab(folder)
    try:
        lab.start()
        lab.admin("POST", "/api/v1/namespaces", {"metadata": {"name": HOME}})
        lease = {"metadata": {"name": "gpuvigil-collector"}}
        lab.admin("POST", f"/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases", lease)
        yield lab
    finally:
        lab.stop()


class Site:
    """Nodes of the cluster with an agent each, and one collector."""

    def __init__(self, lab: KubeLab, folder: Path, names: list[str]) -> None:
        self.lab, self.folder, self.names = lab, folder, names
        self.grpc, self.web = stack.free_port(), stack.free_port()

    @contextlib.contextmanager
    def run(self, bad: str, at_s: float, lasts_s: float) -> Iterator[Site]:
        """Register the nodes and run all; `at_s` after the agents began a GPU of `bad` is lost."""
        for name in self.names:
            make_node(self.lab, name=name, gpus=GPUS, labels={"topology.kubernetes.io/zone": name})
        scenario, config = self.folder / "scenario.toml", self.folder / "collector.toml"
        scenario.write_text(FAULT.format(node=bad, at=at_s, lasts=lasts_s))
        (self.folder / "policy.toml").write_text(POLICY)
        said = {"folder": self.folder, "grpc": self.grpc, "web": self.web, "home": HOME}
        config.write_text(COLLECTOR.format(kubeconfig=self.lab.kubeconfig, **said))
        command = (sys.executable, "-m", "gpuvigil_collector", "--config", str(config))
        with contextlib.ExitStack() as running:
            running.enter_context(stack.running(self.folder / "collector.log", *command))
            self.until(lambda: self.get("remediation")["lease"], 180, "the lease")
            simulate = f'gpus = {GPUS}\nseed = 7\nscenario = "{scenario}"\nstart_ns = {time.time_ns()}'
            for name in self.names:
                ports = (self.grpc, stack.free_port())
                running.enter_context(stack.agent(self.folder, name, *ports, simulate))
            self.until(lambda: self.get("health")["nodes_up"] == len(self.names), 180, "every agent")
            yield self

    def get(self, what: str) -> Any:
        """Return what the collector's API says."""
        return json.loads(stack.fetch(f"http://127.0.0.1:{self.web}/api/v1/{what}"))

    def rows(self, what: str) -> list[dict[str, Any]]:
        """Return the rows of a list of the API."""
        found: list[dict[str, Any]] = self.get(what)["items"]
        return found

    def until(self, ask: Callable[[], Any], within_s: float, what: str) -> Any:
        """Poll; on failure say what the collector thinks."""
        try:
            return stack.wait_for(ask, within_s, what)
        except AssertionError as error:
            cases: list[dict[str, Any]] = []
            with contextlib.suppress(OSError):  # it may not answer at all
                keys = ("step", "waits", "outcome", "trail")
                cases = [{key: one[key] for key in keys} for one in self.rows("cases")]
            log = (self.folder / "collector.log").read_text()[-3000:]
            raise AssertionError(f"{error}\n{json.dumps(cases, indent=1)}\n{log}") from None

    def denied(self, gate: str = "", job: str = "") -> bool:
        """Tell whether an action was denied, by that gate, about that job."""
        denied = [one for one in self.rows("actions") if one["state"] == "denied"]
        return any(gate in ("", one["denied_by"]) and job in ("", one["job"]) for one in denied)

    def told(self, name: str, word: str) -> bool:
        """Tell whether an agent's log has a word."""
        return word in (self.folder / f"{name}.log").read_text()

    def cordoned(self, name: str) -> bool:
        """Tell whether the node takes no new pods, by its spec."""
        return bool(node(self.lab, name)["spec"].get("unschedulable"))

    def events(self, name: str) -> list[str]:
        """Return the reasons of our Events on a node, oldest first."""
        path = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={name}"
        ours = [
            one
            for one in self.lab.admin("GET", path)["items"]
            if one["source"].get("component") == "gpuvigil"
        ]
        ours.sort(key=lambda one: int(one["metadata"]["resourceVersion"]))
        return [one["reason"] for one in ours]
