"""Nodes, pods and workloads of the tests, and the actions upon them."""

from __future__ import annotations

import itertools
import time
from typing import Any

from integration.kube_lab import KubeLab, wait

from gpuvigil_collector.action import Action, Fence, Kind, Proposal
from gpuvigil_collector.actuators.kubernetes import KubernetesActuator
from gpuvigil_collector.kube.settings import KubernetesSettings

MAY_MOVE = {"gpuvigil.io/may-move": "true"}
_numbers = itertools.count(1)


def fresh(word: str) -> str:
    """Return a name that no other test has."""
    return f"{word}-{next(_numbers)}"


def make_node(lab: KubeLab, *, labels: dict[str, str] | None = None, gpus: int = 8, name: str = "") -> str:
    """Register a node with GPUs, as a kubelet does; it is Ready."""
    name = name or fresh("gpu-node")
    said = {"kubernetes.io/hostname": name, "nvidia.com/gpu.present": "true", **(labels or {})}
    lab.admin("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": said}}, manager="kubelet")
    capacity = {"nvidia.com/gpu": str(gpus), "cpu": "96", "memory": "1Ti", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()}
    status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}}
    lab.admin("PATCH", f"/api/v1/nodes/{name}/status", status, "strategic-merge", "kubelet")
    wait(lambda: not node(lab, name)["spec"].get("taints"), 30, lambda: str(node(lab, name)["spec"]))
    return name


def now() -> str:
    """The time as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def node(lab: KubeLab, name: str) -> dict[str, Any]:
    """Return a node as it is."""
    return lab.admin("GET", f"/api/v1/nodes/{name}")


def change_node(lab: KubeLab, name: str, body: dict[str, Any], manager: str = "kubectl") -> None:
    """Change a node as an administrator does."""
    lab.admin("PATCH", f"/api/v1/nodes/{name}", body, "strategic-merge", manager)


def cordon(lab: KubeLab, name: str, on: bool = True) -> None:
    """What `kubectl cordon` and `uncordon` send."""
    change_node(lab, name, {"spec": {"unschedulable": True if on else None}}, "kubectl-cordon")


def marks_of_ours(found: dict[str, Any]) -> list[str]:
    """Every trace of gpuvigil on a node."""
    meta, spec = found["metadata"], found["spec"]
    traces = [key for key in {**meta.get("annotations", {}), **meta.get("labels", {})} if "gpuvigil" in key]
    traces += [taint["key"] for taint in spec.get("taints", []) if "gpuvigil" in taint["key"]]
    return traces + [one["type"] for one in found["status"]["conditions"] if "Gpuvigil" in one["type"]]


def make_namespace(lab: KubeLab, labels: dict[str, str] | None = None) -> str:
    """Make a namespace in which pods can be made."""
    name = fresh("team")
    lab.admin("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})
    path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    wait(lambda: bool((lab.try_get(path) or {}).get("secrets")), 30, lambda: f"{name}: no service account")
    return name


def pod_template(labels: dict[str, str], gpus: int = 8, **spec: Any) -> dict[str, Any]:
    """Return a pod's template that asks for GPUs."""
    need = {"limits": {"nvidia.com/gpu": gpus}}
    container = {"name": "train", "image": "none", "resources": need}
    return {
        "metadata": {"labels": labels},
        "spec": {"restartPolicy": "Never", "containers": [container], **spec},
    }


def make_job(lab: KubeLab, space: str, pods: int, *, labels: dict[str, str] | None = None, backoff: int = 100,
             owner: dict[str, Any] | None = None, template: dict[str, str] | None = None,
             gpus: int = 8) -> str:  # fmt: skip
    """Make a batch/v1 Job; its pods are made by the real controller."""
    name = fresh("job")
    meta: dict[str, Any] = {"name": name, "labels": labels or {}}
    if owner:
        meta["ownerReferences"] = [owner]
    spec = {"parallelism": pods, "completions": pods, "backoffLimit": backoff}
    spec_template = pod_template({"train": name, **(template or {})}, gpus)
    body = {"metadata": meta, "spec": {**spec, "template": spec_template}}
    lab.admin("POST", f"/apis/batch/v1/namespaces/{space}/jobs", body)
    return name


def pods_of(lab: KubeLab, space: str, selector: str) -> list[dict[str, Any]]:
    """Return pods that nobody has asked to end."""
    path = f"/api/v1/namespaces/{space}/pods?labelSelector={selector}"
    found = lab.admin("GET", path)["items"]
    return [one for one in found if "deletionTimestamp" not in one["metadata"]]


def run_pods(lab: KubeLab, space: str, selector: str, count: int, on: list[str]) -> list[str]:
    """Wait for `count` pods, bind them round the nodes and say that they run. Returns their uids."""
    wait(
        lambda: len(pods_of(lab, space, selector)) == count,
        30,
        lambda: f"{space}/{selector}: not {count} pods",
    )
    uids = []
    for pod, place in zip(pods_of(lab, space, selector), itertools.cycle(on), strict=False):
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        run_pod(lab, space, name, place, bound=bool(pod["spec"].get("nodeName")))
        uids.append(uid)
    return uids


def run_pod(lab: KubeLab, space: str, name: str, place: str, *, bound: bool = False) -> None:
    """Do what scheduler and kubelet do: bind the pod and say that it runs and is ready."""
    path = f"/api/v1/namespaces/{space}/pods/{name}"
    if not bound:
        target = {"apiVersion": "v1", "kind": "Node", "name": place}
        lab.admin("POST", f"{path}/binding", {"metadata": {"name": name}, "target": target})
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": now()}
    running = {"status": {"phase": "Running", "conditions": [ready]}}
    lab.admin("PATCH", f"{path}/status", running, "strategic-merge", "kubelet")


def make_budget(lab: KubeLab, space: str, labels: dict[str, str], least: int) -> str:
    """Make a PodDisruptionBudget and wait until the controller has counted."""
    name, base = fresh("budget"), f"/apis/policy/v1beta1/namespaces/{space}/poddisruptionbudgets"
    spec = {"minAvailable": least, "selector": {"matchLabels": labels}}
    lab.admin("POST", base, {"metadata": {"name": name}, "spec": spec})

    def counted() -> bool:
        return bool(lab.admin("GET", f"{base}/{name}").get("status", {}).get("expectedPods"))

    wait(counted, 30, lambda: str(lab.admin("GET", f"{base}/{name}")))
    return name


def action(kind: Kind, place: str, *, incident: str = "INC-1", job: str = "", deadline_s: float = 20.0,
           before: str = "") -> Action:  # fmt: skip
    """Return an action as the executor makes one."""
    proposal = Proposal(
        id=f"{incident}.{kind}", case=incident, incident=incident, fault_class="gpu_fell_off_bus",
        playbook="replace", step=1, kind=kind, node=place, reason="Xid 79 gpu3 fell off the bus", job=job,
        deadline_s=deadline_s,
    )  # fmt: skip
    return Action(proposal=proposal, state="intended", before=before)


def fence(generation: int = 1, seconds: float = 60.0) -> Fence:
    """Return a fence that holds."""
    return Fence(holder="collector-a", generation=generation, until_ns=time.time_ns() + int(seconds * 1e9))


def actuator(lab: KubeLab, *, call_s: float = 5.0, **settings: Any) -> KubernetesActuator:
    """Return the actuator on the lab's cluster."""
    return KubernetesActuator(lab.api(call_s=call_s), KubernetesSettings(**settings))
