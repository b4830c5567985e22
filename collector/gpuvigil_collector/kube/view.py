"""The cluster as the safety kernel is told of it: nodes, whose hold stands on each, and the jobs with GPUs.

One read is one list of nodes, namespaces, disruption budgets and pods, page by page, and one GET for each
owner of a pod with GPUs, within one deadline. It is whole or it is an error: unknown denies.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gpuvigil_collector.action import JobState, NodeState
from gpuvigil_collector.kube import others
from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, StatusError
from gpuvigil_collector.kube.budgets import never_allows, read_budgets, refused_by
from gpuvigil_collector.kube.marks import held, standing, tainted
from gpuvigil_collector.kube.objects import (
    Budget,
    Meta,
    Namespace,
    NamespacePage,
    Node,
    NodePage,
    Pod,
    PodPage,
    is_gpu,
    path_word,
    quantity,
)
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.kube.workload import Gang, Owners, gangs, refusals

PAUSE = "gpuvigil.io/pause"
"""Annotation on the collector's namespace that pauses all actions; its value says why."""
_GPU_PRESENT = "nvidia.com/gpu.present"  # GPU feature discovery
_NAMESPACES_MAX = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesView:
    """What one read found. Nodes without GPUs are left out.

    jobs: by NAMESPACE/KIND/NAME. job_pods: the pods' (namespace, name, uid, node) of each. others: another
    remediator whose nodes are not split from ours. paused: what the pause annotation says, "" for none.
    """

    nodes: Mapping[str, NodeState]
    jobs: Mapping[str, JobState]
    job_pods: Mapping[str, tuple[tuple[str, str, str, str], ...]]
    others: str
    paused: str
    read_ns: int


def read(api: KubeApi, settings: KubernetesSettings) -> KubernetesView:
    """Read the cluster. Raises KubeError when any part is missing, late, too large or makes no sense."""
    deadline, read_ns = Deadline(settings.read_deadline), time.time_ns()
    nodes = [
        one for one in api.items("/api/v1/nodes", NodePage, deadline, settings.nodes_max) if _has_gpus(one)
    ]
    spaces = api.items("/api/v1/namespaces", NamespacePage, deadline, _NAMESPACES_MAX)
    namespaces = {one.metadata.name: one.metadata for one in spaces}
    budgets = read_budgets(api, deadline)
    every = api.items("/api/v1/pods", PodPage, deadline, settings.pods_max)
    placed = [pod for pod in every if pod.live and pod.spec.node_name and pod.gpus]
    found = gangs(placed, Owners(api, deadline, settings.owners_max))
    jobs = {job: _job_state(gang, namespaces, budgets, settings.restarts_left) for job, gang in found.items()}
    on_node: dict[str, list[str]] = {}
    for job, state in jobs.items():
        for node in set(state.nodes):
            on_node.setdefault(node, []).append(job)
    if deadline.over:
        raise KubeError(f"the cluster could not be read within {settings.read_deadline:g} s")
    return KubernetesView(
        nodes={
            one.metadata.name: _node_state(one, on_node.get(one.metadata.name, ()), settings) for one in nodes
        },
        jobs=jobs,
        job_pods={job: tuple(map(_pod_key, gang.pods)) for job, gang in found.items()},
        others=others.unsplit_remediator(nodes),
        paused=_paused(namespaces.get(settings.namespace)),
        read_ns=read_ns,
    )


def read_pause(api: KubeApi, settings: KubernetesSettings) -> str:
    """Return what the pause annotation says now, "" for none: one GET, for the time between two reads.

    Raises KubeError.
    """
    try:
        path = f"/api/v1/namespaces/{path_word(settings.namespace)}"
        return _paused(api.get(path, Namespace, Deadline(settings.call_timeout)).metadata)
    except StatusError as error:
        if error.code == 404:
            return ""
        raise


def _node_state(node: Node, jobs: Iterable[str], settings: KubernetesSettings) -> NodeState:
    name, labels = node.metadata.name, node.metadata.labels
    hold, why = _hold(node, settings.taint_key)
    ready = next((one.status for one in node.status.conditions if one.type == "Ready"), "")
    return NodeState(
        node=name,
        gpus=_gpu_count(node),
        partition=_first(settings.partition_labels, labels),
        domain=_first(settings.domain_labels, labels),
        dead=ready == "Unknown",  # the kubelet's heartbeat stopped: a second path beside our agent
        maintenance=others.maintenance(node),
        hold=hold,
        held_why=why,
        remediator=others.remediator(node),
        protected=others.protected(node),
        jobs=tuple(sorted(jobs)),
    )


def _hold(node: Node, taint_key: str) -> tuple[Literal["none", "ours", "foreign"], str]:
    """Say whose hold stands. Marks of ours that were altered are nobody's, and deny this node alone."""
    try:
        state, entry = standing(node, taint_key), held(node)
    except KubeError as error:
        return "foreign", str(error)
    if state == "ours" and entry is not None:
        return "ours", f"{entry.by}: {entry.reason} [{','.join(entry.incidents)}]"
    if state == "taken" and not node.spec.unschedulable:
        return "none", "our hold was taken off by somebody"
    if state == "none":
        left = tainted(node, taint_key)
        return ("ours", "our taint without our marks: a release was undone by half") if left else ("none", "")
    return "foreign", "cordoned or tainted, and not by gpuvigil"


def _job_state(gang: Gang, namespaces: Mapping[str, Meta], budgets: list[Budget], keep: int) -> JobState:
    words = list(refusals(gang, namespaces, keep))
    if gang.chain is not None and _kept_by_budgets(gang, budgets):
        words.append("disruption_budget")
    return JobState(
        job=gang.job, nodes=gang.nodes, gpus=sum(pod.gpus for pod in gang.pods), refusals=tuple(words)
    )


def _kept_by_budgets(gang: Gang, budgets: list[Budget]) -> bool:
    """Whether the gang may not go now: asked anew with each read, so that nobody else waits for it.

    Of pods that stand alone only those of one node go: the actuator asks for them.
    """
    home = [one for one in budgets if one.metadata.namespace == gang.pods[0].metadata.namespace]
    try:
        return never_allows(gang.pods, home) or bool(not gang.one_by_one and refused_by(gang.pods, home))
    except KubeError:  # two budgets over one pod: the server evicts it never
        return True


def _gpu_count(node: Node) -> int:
    return sum(quantity(value) for name, value in node.status.capacity.items() if is_gpu(name))


def _has_gpus(node: Node) -> bool:
    """A node that has lost all its GPUs is still one with GPUs: its capacity says 0, or its label remains."""
    return any(map(is_gpu, node.status.capacity)) or node.metadata.labels.get(_GPU_PRESENT) == "true"


def _first(keys: Iterable[str], labels: Mapping[str, str]) -> str:
    return next((labels[key] for key in keys if labels.get(key)), "")


def _pod_key(pod: Pod) -> tuple[str, str, str, str]:
    return (pod.metadata.namespace, pod.metadata.name, pod.metadata.uid, pod.spec.node_name)


def _paused(home: Meta | None) -> str:
    """An annotation with no words pauses too."""
    if home is None or PAUSE not in home.annotations:
        return ""
    return f"annotation {PAUSE}: {home.annotations[PAUSE][:200] or 'no reason given'}"
