"""Owners, restart budgets, opt-in, disruption budgets and others' marks, without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpuvigil_collector.kube import others
from gpuvigil_collector.kube.budgets import never_allows, refused_by, selects
from gpuvigil_collector.kube.objects import Budget, Node, Pod, Selector, Workload
from gpuvigil_collector.kube.restarts import Link, leaves_restarts
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.kube.workload import Chain, Gang, refusals


def link(group: str, kind: str, spec: Any = None, status: Any = None) -> Link:
    return Link(
        group=group,
        kind=kind,
        workload=msgspec.convert(
            {"metadata": {"name": "w"}, "spec": spec or {}, "status": status or {}}, Workload
        ),
    )


IGNORE = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
RESTARTING = {"Worker": {"restartPolicy": "OnFailure"}, "Master": {"restartPolicy": "OnFailure"}}


@pytest.mark.parametrize(
    ("links", "moving", "leaves"),
    [
        ([link("batch", "Job", {"backoffLimit": 6})], 5, True),
        ([link("batch", "Job", {"backoffLimit": 6})], 6, False),
        ([link("batch", "Job", {"backoffLimit": 6}, {"failed": 4})], 2, False),
        ([link("batch", "Job", {})], 8, False),
        ([link("batch", "Job", {"backoffLimit": 0, "podFailurePolicy": IGNORE})], 8, True),
        ([link("batch", "Job", {"backoffLimit": "many"})], 1, False),
        ([link("batch", "Job", {"backoffLimit": -1})], 1, False),
        ([link("batch", "Job", {"backoffLimit": 0}), link("jobset.x-k8s.io", "JobSet")], 4, False),
        (
            [
                link("batch", "Job", {"backoffLimit": 0}),
                link("jobset.x-k8s.io", "JobSet", {"failurePolicy": {"maxRestarts": 3}}, {"restarts": 1}),
                link("trainer.kubeflow.org", "TrainJob"),
            ],
            64,
            True,
        ),
        ([link("kubeflow.org", "PyTorchJob", {"pytorchReplicaSpecs": RESTARTING})], 64, True),
        ([link("kubeflow.org", "PyTorchJob", {"pytorchReplicaSpecs": {"Worker": {}}})], 1, False),
        (
            [
                link(
                    "kubeflow.org",
                    "PyTorchJob",
                    {"pytorchReplicaSpecs": RESTARTING, "runPolicy": {"backoffLimit": 3}},
                    {"replicaStatuses": {"Worker": {"failed": 1}}},
                ),
            ],
            2,
            False,
        ),
        ([link("batch.volcano.sh", "Job", {"maxRetry": 3}, {"retryCount": 1})], 8, True),
        ([link("batch.volcano.sh", "Job", {"maxRetry": 3}, {"retryCount": 2})], 8, False),
        ([link("ray.io", "RayCluster")], 4, True),
        ([link("ray.io", "RayCluster"), link("ray.io", "RayJob")], 4, False),
        ([link("apps", "StatefulSet"), link("leaderworkerset.x-k8s.io", "LeaderWorkerSet")], 4, True),
        ([link("example.com", "Trainer")], 1, False),
        ([link("example.com", "Job", {"backoffLimit": 99})], 1, False),
        ([], 1, False),
    ],
)
def test_r7_restarts_left(links: list[Link], moving: int, leaves: bool) -> None:
    assert leaves_restarts(links, moving, 1) == leaves


def pod(name: str = "p", labels: dict[str, str] | None = None, **spec: Any) -> Pod:
    meta = {"name": name, "namespace": "team", "uid": name, "labels": labels or {}}
    return msgspec.convert({"metadata": meta, "spec": spec, "status": {"phase": "Running"}}, Pod)


def test_refusals_in_the_words_of_the_kernel() -> None:
    chain = Chain(links=(link("apps", "ReplicaSet"),), root="Deployment/x", whole=True)
    may = {"gpuvigil.io/may-move": "true"}
    shell = pod(labels=may, containers=[{"stdin": True, "tty": True}])
    kept = pod(labels={**may, "karpenter.sh/do-not-disrupt": "true"})

    def said(one: Pod, over: Chain | None) -> tuple[str, ...]:
        return refusals(Gang(job="team/Deployment/x", pods=(one,), chain=over), {}, 1)

    assert said(pod(labels=may), chain) == ()
    assert said(pod(labels=may), None) == ("bare_pod",)
    assert said(pod(), chain) == ("not_opted_in",)
    assert said(shell, chain) == ("interactive",)
    assert said(kept, chain) == ("no_requeue",)
    assert said(pod(labels=may), Chain(links=(), root="Job/x", whole=False)) == ("restart_budget",)


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "b", "c": "d"}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "c"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {"a": "b"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {"a": "b"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Later"}]}, {}, True),
    ],
)
def test_label_selectors(selector: dict[str, Any], labels: dict[str, str], selected: bool) -> None:
    assert selects(msgspec.convert(selector, Selector), labels) == selected


def budget(allowed: int, *, desired: int = 1, expected: int = 2) -> Budget:
    status = {"disruptionsAllowed": allowed, "desiredHealthy": desired, "expectedPods": expected}
    spec = {"selector": {"matchLabels": {"train": "x"}}}
    return msgspec.convert(
        {"metadata": {"name": "b", "namespace": "team"}, "spec": spec, "status": status}, Budget
    )


def test_r7_budgets_are_asked_for_the_whole_gang() -> None:
    gang = [pod(str(n), {"train": "x"}) for n in range(3)]
    assert "2 of 3" in refused_by(gang, [budget(2)]) and refused_by(gang, [budget(3)]) == ""
    assert never_allows(gang, [budget(0, desired=2, expected=2)])
    assert not never_allows(gang, [budget(0, desired=1, expected=2)])


def test_every_row_of_others_marks_fits_its_own_mark() -> None:
    """A row that can never match would be a promise that nobody keeps."""
    samples = {
        "nvidia.com/mig.config.state": "pending",
        "cloud.google.com/active-node-maintenance": "ONGOING",
    }
    for mark in others.marks():
        key = mark.key.replace("*", "x")
        value = samples.get(mark.key, "true" if "true" in mark.value else "x")
        raw: dict[str, Any] = {"metadata": {"name": "n"}, "spec": {}, "status": {}}
        if mark.where in ("label", "annotation"):
            raw["metadata"][f"{mark.where}s"] = {key: value}
        elif mark.where == "taint":
            raw["spec"]["taints"] = [{"key": key, "effect": "NoSchedule"}]
        else:
            raw["status"]["conditions"] = [{"type": key, "status": "True"}]
        judge = others.maintenance if mark.means == "maintenance" else others.remediator
        assert judge(msgspec.convert(raw, Node)).startswith(mark.who), mark


@pytest.mark.parametrize(
    "wrong",
    [
        {"taint_key": "no spaces here"},
        {"taint_key": "node.kubernetes.io/mine"},
        {"condition": "Ready"},
        {"condition": "lower"},
        {"nodes_max": 0},
        {"restarts_left": -1},
        {"domain_labels": ("*",)},
        {"call_timeout": 0.0},
        {"read_deadline": 10_000.0},
    ],
)
def test_o4_bad_settings_are_refused_with_their_name(wrong: dict[str, Any]) -> None:
    KubernetesSettings()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KubernetesSettings(**wrong)
