"""The fleet that repairs itself on a real API server; its job is a batch/v1 Job whose pod is a process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration import stack
from integration.kube_kubelet import Kubelet
from integration.kube_lab import KubeLab
from integration.kube_site import HOME, cluster
from integration.kube_things import MAY_MOVE, make_namespace, make_node, marks_of_ours, node, pod_template
from integration.repair_base import INTERVAL, STEP_S, Fleet

JOB = "training"


@dataclass
class KubeFleet(Fleet):
    """The fleet on Kubernetes; `space` is the namespace of its job."""

    lab: KubeLab = field(kw_only=True)
    space: str = ""
    kind: str = "kubernetes"

    def __post_init__(self) -> None:
        for name in self.nodes:
            make_node(self.lab, name=name)
        self.space = make_namespace(self.lab)
        super().__post_init__()

    def scheduler(self) -> str:
        """As shipped, but for where the cluster is."""
        return f'[actuators.kubernetes]\nkubeconfig = "{self.lab.kubeconfig}"\nnamespace = "{HOME}"\n'

    def submit(self) -> str:
        """A Job of one pod that may be moved."""
        path = ":".join(str(stack.ROOT / source) for source in stack.SOURCES)
        env = {"PYTHONPATH": path, "GPUVIGIL_SOCKET": f"{self.folder}/hook-$(NODE).sock", "GPUVIGIL_JOB": JOB}
        arguments = (f"{self.folder}/job.py", self.folder, INTERVAL, STEP_S, "$(NODE)")
        template = pod_template({"train": JOB})
        [container] = template["spec"]["containers"]
        container["command"] = [sys.executable, *map(str, arguments)]
        container["env"] = [{"name": key, "value": value} for key, value in env.items()]
        spec = {"parallelism": 1, "completions": 1, "backoffLimit": 100, "template": template}
        body = {"metadata": {"name": JOB, "labels": MAY_MOVE}, "spec": spec}
        self.lab.admin("POST", f"/apis/batch/v1/namespaces/{self.space}/jobs", body)
        return JOB

    def pods(self) -> list[dict[str, Any]]:
        """The job's pods."""
        found: list[dict[str, Any]] = self.lab.admin("GET", f"/api/v1/namespaces/{self.space}/pods")["items"]
        return found

    def where(self) -> str:
        """The node of the pod that runs."""
        running = [pod for pod in self.pods() if pod["status"]["phase"] == "Running"]
        return str(running[0]["spec"]["nodeName"]) if running else ""

    def held(self) -> bool:
        """Cordoned by us."""
        found = node(self.lab, "gn1")
        return bool(found["spec"].get("unschedulable")) and bool(marks_of_ours(found))

    def told(self) -> str:
        """Nodes and pods."""
        said = [f"{name}: {node(self.lab, name)['spec']}" for name in self.nodes]
        said += [f"{pod['metadata']['name']}: {pod['status']}" for pod in self.pods()]
        return "\n".join(said)


@contextlib.contextmanager
def kube_fleet(folder: Path, **more: Any) -> Iterator[KubeFleet]:
    """Make a cluster and a fleet, all state fresh; their processes end with the block."""
    with cluster(folder / "cluster") as lab:
        fleet = KubeFleet(folder, lab=lab, **more)
        try:
            with Kubelet(lab, fleet.space, fleet.nodes, folder / "pods.log").run():
                yield fleet
        finally:
            fleet.stop()
