"""Who owns a pod, which pods are one gang, and why they must not be evicted.

The chain of controllers is followed from the pod upward (Pod -> Job -> JobSet -> TrainJob), each owner read
and its uid compared, so that nobody joins another's gang by a label. Where an owner cannot be read, the pod's
labels still name the gang, and the unknown restart budget refuses the move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, StatusError, group_path
from gpuvigil_collector.kube.objects import Meta, Owner, Pod, Workload, path_word
from gpuvigil_collector.kube.restarts import Link, leaves_restarts

MAY_MOVE: Final = "gpuvigil.io/may-move"
"""Label or annotation "true" on pod, workload or namespace: it may be evicted. The nearest one counts."""
ONE_BY_ONE: Final = frozenset({"ReplicaSet", "Deployment", "StatefulSet"})
"""Kinds whose pods go on without each other: only those on the faulty node move."""
_NOT_JOBS: Final = frozenset({"DaemonSet", "Node"})
_KEEP: Final = {  # others' words for "do not take this pod away"
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
    "karpenter.sh/do-not-evict": "true",
}
_LABELS: Final = (  # label -> kind, outermost first
    ("trainer.kubeflow.org/trainjob-name", "TrainJob"),
    ("jobset.sigs.k8s.io/jobset-name", "JobSet"),
    ("ray.io/cluster", "RayCluster"),
    ("leaderworkerset.sigs.k8s.io/name", "LeaderWorkerSet"),
    ("volcano.sh/job-name", "Job.batch.volcano.sh"),
)
_GROUP_INDEX: Final = "leaderworkerset.sigs.k8s.io/group-index"
_CHAIN_MAX: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The controllers of a pod, nearest first. whole: each could be read. root: kind and name of the last."""

    links: tuple[Link, ...]
    root: str
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """Pods that stop and start together. job: NAMESPACE/KIND/NAME, for a LeaderWorkerSet with its group."""

    job: str
    pods: tuple[Pod, ...]
    chain: Chain | None
    one_by_one: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that live pods of it are on."""
        return tuple(sorted({pod.spec.node_name for pod in self.pods if pod.spec.node_name}))


class Owners:
    """Reads controllers, each once. Raises KubeError when there are more than `limit`, or no time is left."""

    def __init__(self, api: KubeApi, deadline: Deadline, limit: int) -> None:
        self._api, self._deadline, self._limit = api, deadline, limit
        self._read: dict[str, Workload | None] = {}

    def chain(self, pod: Pod) -> Chain | None:
        """Return the pod's controllers, None for a bare pod."""
        links: list[Link] = []
        owner, namespace = pod.controller, pod.metadata.namespace
        root, whole = "", True
        while owner is not None and len(links) < _CHAIN_MAX:
            found = self._owner(owner, namespace)
            if found is None:
                root, whole = _labelled(pod) or _named(owner), False
                break
            links.append(Link(group=owner.api_version.rpartition("/")[0], kind=owner.kind, workload=found))
            root = _named(owner)
            owner = next((one for one in found.metadata.owner_references if one.controller), None)
        return Chain(links=tuple(links), root=root, whole=whole) if root else None

    def _owner(self, owner: Owner, namespace: str) -> Workload | None:
        if owner.uid not in self._read:
            if len(self._read) >= self._limit:
                raise KubeError(f"workloads: expected at most {self._limit}, got more")
            if self._deadline.over:
                raise KubeError("workloads: no time left to read them all")
            self._read[owner.uid] = self._fetch(owner, namespace)
        return self._read[owner.uid]

    def _fetch(self, owner: Owner, namespace: str) -> Workload | None:
        try:
            word = path_word(self._api.plural(owner.api_version, owner.kind, self._deadline))
            base = group_path(owner.api_version)
            path = f"{base}/namespaces/{path_word(namespace)}/{word}/{path_word(owner.name)}"
            found = self._api.get(path, Workload, self._deadline)
        except StatusError as error:
            if error.code in (403, 404):  # no right to read this kind, or it is gone: its budget is unknown
                return None
            raise
        return found if found.metadata.uid == owner.uid else None


def gangs(pods: Iterable[Pod], owners: Owners) -> dict[str, Gang]:
    """Group live pods by who owns them. Pods of daemons are no jobs and are left out."""
    members: dict[str, list[Pod]] = {}
    chains: dict[str, Chain | None] = {}
    for pod in pods:
        first = pod.controller
        if not pod.live or (first is not None and first.kind in _NOT_JOBS):
            continue
        chain = owners.chain(pod)
        job = f"{pod.metadata.namespace}/{chain.root if chain else 'Pod/' + pod.metadata.name}"
        if chain and chain.root.startswith("LeaderWorkerSet/"):  # its group is the gang
            job += f"/{pod.metadata.labels.get(_GROUP_INDEX, '')}"
        members.setdefault(job, []).append(pod)
        # the pod with the poorer chain speaks: what cannot be read of one member is unknown of the gang
        if job not in chains or (chain is not None and not chain.whole):
            chains[job] = chain
    return {
        job: Gang(job=job, pods=tuple(found), chain=chains[job], one_by_one=job.split("/")[1] in ONE_BY_ONE)
        for job, found in members.items()
    }


def refusals(
    gang: Gang, namespaces: Mapping[str, Meta], restarts_left: int, moving: Sequence[Pod] = ()
) -> tuple[str, ...]:
    """Return why the gang must not be moved, in action.JobState's words. moving: the pods that would go."""
    if gang.chain is None:
        return ("bare_pod",)
    count = len(moving or gang.pods)
    said = [
        ("interactive", any(map(_interactive, gang.pods)) or "Notebook" in gang.chain.root),
        ("no_requeue", any(_keep(pod.metadata) for pod in gang.pods)),
        ("not_opted_in", not all(_opted_in(pod, gang.chain, namespaces) for pod in gang.pods)),
        (
            "restart_budget",
            not gang.chain.whole or not leaves_restarts(gang.chain.links, count, restarts_left),
        ),
    ]
    return tuple(word for word, holds in said if holds)


def _opted_in(pod: Pod, chain: Chain, namespaces: Mapping[str, Meta]) -> bool:
    nearest = [pod.metadata, *(link.workload.metadata for link in chain.links)]
    home = namespaces.get(pod.metadata.namespace)
    for meta in [*nearest, *([home] if home else [])]:
        word = (meta.labels.get(MAY_MOVE) or meta.annotations.get(MAY_MOVE) or "").lower()
        if word:
            return word == "true"
    return False


def _keep(meta: Meta) -> bool:
    return any((meta.annotations.get(key) or meta.labels.get(key)) == value for key, value in _KEEP.items())


def _interactive(pod: Pod) -> bool:
    return any(one.stdin and one.tty for one in pod.spec.containers)


def _named(owner: Owner) -> str:
    group = owner.api_version.rpartition("/")[0]
    # two kinds are called Job: Volcano's says whose it is
    return f"{owner.kind}.{group}/{owner.name}" if "volcano" in group else f"{owner.kind}/{owner.name}"


def _labelled(pod: Pod) -> str:
    labels = pod.metadata.labels
    return next((f"{kind}/{labels[label]}" for label, kind in _LABELS if label in labels), "")
