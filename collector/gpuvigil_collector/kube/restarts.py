"""Would an eviction use up what restarts a workload has? Every evicted pod may count as a failure.

Sources: batch/v1 Job (backoffLimit, status.failed, podFailurePolicy on DisruptionTarget), JobSet
(failurePolicy.maxRestarts, status.restartsCountTowardsMax), Kubeflow training v1 (runPolicy.backoffLimit,
replica restartPolicy), Volcano (maxRetry, status.retryCount). A kind that is not here is unknown, and unknown
says no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gpuvigil_collector.kube.objects import Workload

Tree = Mapping[str, Any]
_JOB_BACKOFF: Final = 6  # Kubernetes' default of a Job's backoffLimit
_VOLCANO_RETRY: Final = 3  # Volcano's default of maxRetry


class _NoNumberError(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One controller of a chain. group: its API group, "" for the core."""

    group: str
    kind: str
    workload: Workload


def leaves_restarts(links: Sequence[Link], moving: int, keep: int) -> bool:
    """Return whether evicting `moving` pods leaves the workload at least `keep` restarts.

    The outermost controller that counts decides: the failed Jobs of a JobSet are the JobSet's restarts.
    A count that is no number leaves none.
    """
    for link in reversed(links):
        judge = _JUDGES.get((link.group, link.kind))
        if judge is None:
            if (link.group, link.kind) in _UNCOUNTED:
                continue
            return False
        try:
            left = judge(link.workload, moving)
        except _NoNumberError:
            return False
        return left is None or left >= keep
    return bool(links)  # all of them make their pods again without counting


def _job(job: Workload, moving: int) -> int | None:
    rules = _list(_tree(job.spec, "podFailurePolicy"), "rules")
    if any(_ignores_disruption(rule) for rule in rules):
        return None
    return _number(job.spec, "backoffLimit", _JOB_BACKOFF) - _number(job.status, "failed", 0) - moving


def _ignores_disruption(rule: object) -> bool:
    if not isinstance(rule, Mapping) or rule.get("action") != "Ignore":
        return False
    conditions = [one for one in _list(rule, "onPodConditions") if isinstance(one, Mapping)]
    return any(one.get("type") == "DisruptionTarget" for one in conditions)


def _jobset(jobset: Workload, _moving: int) -> int | None:
    allowed = _number(_tree(jobset.spec, "failurePolicy"), "maxRestarts", 0)
    used = _number(jobset.status, "restartsCountTowardsMax", _number(jobset.status, "restarts", 0))
    return allowed - used - 1  # one restart of the whole, however many pods go


def _kubeflow(job: Workload, moving: int) -> int | None:
    replicas = list(_replicas(job.spec))
    if not replicas or any(one.get("restartPolicy", "Never") == "Never" for one in replicas):
        return -1  # an evicted replica is not made again: the job fails
    limit = _tree(job.spec, "runPolicy").get("backoffLimit")
    if limit is None:
        return None
    statuses = _tree(job.status, "replicaStatuses").values()
    failed = sum(_number(one, "failed", 0) for one in statuses if isinstance(one, Mapping))
    return _number({"backoffLimit": limit}, "backoffLimit", 0) - failed - moving


def _replicas(spec: Tree) -> Iterator[Tree]:
    for name, group in spec.items():
        if name.endswith("ReplicaSpecs") and isinstance(group, Mapping):
            yield from (one for one in group.values() if isinstance(one, Mapping))


def _volcano(job: Workload, _moving: int) -> int | None:
    used = _number(job.status, "retryCount", 0)
    return _number(job.spec, "maxRetry", _VOLCANO_RETRY) - used - 1


def _rayjob(job: Workload, _moving: int) -> int | None:
    return _number(job.spec, "backoffLimit", 0) - _number(job.status, "failed", 0) - 1


_JUDGES: Final[dict[tuple[str, str], Callable[[Workload, int], int | None]]] = {
    ("batch", "Job"): _job,
    ("jobset.x-k8s.io", "JobSet"): _jobset,
    ("kubeflow.org", "PyTorchJob"): _kubeflow,
    ("kubeflow.org", "MPIJob"): _kubeflow,
    ("ray.io", "RayJob"): _rayjob,
    ("batch.volcano.sh", "Job"): _volcano,
}
_UNCOUNTED: Final = frozenset(
    {
        ("apps", "ReplicaSet"),
        ("apps", "Deployment"),
        ("apps", "StatefulSet"),
        ("", "Pod"),  # the leader of a LeaderWorkerSet's group owns the group's StatefulSet
        ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"),
        ("ray.io", "RayCluster"),
        ("batch", "CronJob"),
        ("trainer.kubeflow.org", "TrainJob"),  # its JobSet counts
    }
)


def _tree(tree: Tree, key: str) -> Tree:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(tree: Tree, key: str) -> list[object]:
    value = tree.get(key)
    return value if isinstance(value, list) else []


def _number(tree: Tree, key: str, default: int) -> int:
    value = tree.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _NoNumberError
    return value
