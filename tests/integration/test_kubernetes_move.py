"""Moving a job on a real API server with real controllers: eviction alone, the gang as one, budgets kept."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from integration.kube_lab import KubeLab, lab, wait
from integration.kube_things import (
    MAY_MOVE,
    action,
    actuator,
    fence,
    make_budget,
    make_job,
    make_namespace,
    make_node,
    pod_template,
    pods_of,
    run_pod,
    run_pods,
)

from gpuvigil_collector.action import RefusedError

__all__ = ["lab"]
pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(300)]
BUDGETS = "/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets/{}"


@pytest.fixture
def places(lab: KubeLab) -> list[str]:
    return [make_node(lab), make_node(lab)]


def move(job: str, place: str, **more: Any) -> Any:
    return action("move_job", place, job=job, **more)


def uids(lab: KubeLab, space: str, job: str) -> list[str]:
    return [one["metadata"]["uid"] for one in pods_of(lab, space, f"train={job}")]


def test_gang_is_evicted_as_one_and_made_again(lab: KubeLab, places: list[str]) -> None:
    space, act = make_namespace(lab), actuator(lab)
    job = make_job(lab, space, 3, labels=MAY_MOVE)
    old = run_pods(lab, space, f"train={job}", 3, places)
    seen = act.look(move(f"{space}/Job/{job}", places[0]))
    assert seen.state == "absent" and seen.detail == "3 pods"
    step = move(f"{space}/Job/{job}", places[0], before=seen.token)
    assert "evicted 3 pods" in act.apply(step, fence())
    assert act.look(step).state == "done"
    wait(lambda: len(uids(lab, space, job)) == 3, 30, lambda: "the controller made no new pods")
    assert not set(uids(lab, space, job)) & set(old)
    assert act.look(step).state == "done"


def test_r4_a_second_move_spares_the_new_pods(lab: KubeLab, places: list[str]) -> None:
    """After a lost answer the executor may apply again: the pods that came since are not evicted."""
    space, act = make_namespace(lab), actuator(lab)
    job = make_job(lab, space, 2, labels=MAY_MOVE)
    run_pods(lab, space, f"train={job}", 2, places)
    step = move(f"{space}/Job/{job}", places[0])
    step = replace(step, before=act.look(step).token)
    act.apply(step, fence())
    wait(lambda: len(uids(lab, space, job)) == 2, 30, lambda: "the controller made no new pods")
    new = run_pods(lab, space, f"train={job}", 2, places)
    assert "already" in act.apply(step, fence())
    assert sorted(uids(lab, space, job)) == sorted(new)


def test_r7_bare_pod_never(lab: KubeLab, places: list[str]) -> None:
    """Also one that carries a job's labels, and one whose owner does not exist."""
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    labels = {**MAY_MOVE, "job-name": "llama", "train": "bare", "jobset.sigs.k8s.io/jobset-name": "llama"}
    lab.admin("POST", f"/api/v1/namespaces/{space}/pods", {**pod_template(labels),
              "metadata": {"name": "bare", "labels": labels}})  # fmt: skip
    run_pod(lab, space, "bare", places[0])
    for job in (f"{space}/Pod/bare", f"{space}/JobSet/llama", f"{space}/Job/llama"):
        with pytest.raises(RefusedError):
            act.apply(move(job, places[0]), fence())
    with pytest.raises(RefusedError, match="bare_pod"):
        act.apply(move(f"{space}/Pod/bare", places[0]), fence())
    assert len(uids(lab, space, "bare")) == 1


def test_r7_only_what_has_opted_in_moves(lab: KubeLab, places: list[str]) -> None:
    """Workload before namespace; the namespace's word counts where the workload says nothing."""
    act = actuator(lab)
    for home, own, moves in [({}, {}, False), (MAY_MOVE, {}, True), ({}, MAY_MOVE, True),
                             (MAY_MOVE, {"gpuvigil.io/may-move": "false"}, False)]:  # fmt: skip
        space = make_namespace(lab, home)
        job = make_job(lab, space, 1, labels=own)
        old = run_pods(lab, space, f"train={job}", 1, places)
        if moves:
            act.apply(move(f"{space}/Job/{job}", places[0]), fence())
        else:
            with pytest.raises(RefusedError, match="not_opted_in"):
                act.apply(move(f"{space}/Job/{job}", places[0]), fence())
        assert (uids(lab, space, job) == old) != moves


@pytest.mark.parametrize(("backoff", "moves"), [(2, False), (3, True)])
def test_r7_restart_budget_is_not_used_up(lab: KubeLab, places: list[str], backoff: int, moves: bool) -> None:
    """Two pods are two failures; one restart must be left."""
    space, act = make_namespace(lab), actuator(lab)
    job = make_job(lab, space, 2, labels=MAY_MOVE, backoff=backoff)
    old = run_pods(lab, space, f"train={job}", 2, places)
    if moves:
        act.apply(move(f"{space}/Job/{job}", places[0]), fence())
        return
    with pytest.raises(RefusedError, match="restart_budget"):
        act.apply(move(f"{space}/Job/{job}", places[0]), fence())
    assert sorted(uids(lab, space, job)) == sorted(old)


def test_r7_others_word_to_keep_a_pod_is_kept(lab: KubeLab, places: list[str]) -> None:
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    job = make_job(lab, space, 1, template={"karpenter.sh/do-not-disrupt": "true"})
    run_pods(lab, space, f"train={job}", 1, places)
    with pytest.raises(RefusedError, match="no_requeue"):
        act.apply(move(f"{space}/Job/{job}", places[0]), fence())


def test_r7_disruption_budget_is_waited_out(lab: KubeLab, places: list[str]) -> None:
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    job = make_job(lab, space, 2)
    old = run_pods(lab, space, f"train={job}", 2, places)
    budget = make_budget(lab, space, {"train": job}, least=2)
    with pytest.raises(RefusedError, match="lets 0 of 2"):
        act.apply(move(f"{space}/Job/{job}", places[0], deadline_s=3), fence())
    assert sorted(uids(lab, space, job)) == sorted(old)
    relax = {"spec": {"minAvailable": 0}}
    later = threading.Timer(2.0, lab.admin, ("PATCH", BUDGETS.format(space, budget), relax))
    later.start()
    start = time.monotonic()
    assert "evicted 2" in act.apply(move(f"{space}/Job/{job}", places[0], deadline_s=30), fence())
    assert time.monotonic() - start > 1.5
    later.join()


def test_r7_the_servers_429_is_waited_out(
    lab: KubeLab, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget tightens after we asked: the server itself refuses with 429, until it is relaxed."""
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    job = make_job(lab, space, 2)
    old = run_pods(lab, space, f"train={job}", 2, places)
    budget = make_budget(lab, space, {"train": job}, least=2)
    monkeypatch.setattr("gpuvigil_collector.actuators.kubernetes_move.refused_by", lambda *_: "")
    with pytest.raises(RefusedError, match="429"):
        act.apply(move(f"{space}/Job/{job}", places[0], deadline_s=3), fence())
    assert sorted(uids(lab, space, job)) == sorted(old)
    later = threading.Timer(
        2.0, lab.admin, ("PATCH", BUDGETS.format(space, budget), {"spec": {"minAvailable": 0}})
    )
    later.start()
    assert "evicted 2" in act.apply(move(f"{space}/Job/{job}", places[0], deadline_s=30), fence())
    later.join()


def test_jobset_is_one_gang_with_its_own_restarts(lab: KubeLab, places: list[str]) -> None:
    """A JobSet's Jobs have no restarts of their own; the JobSet has."""
    define(lab, "jobset.x-k8s.io", "v1alpha2", "JobSet", "jobsets")
    act = actuator(lab)
    for allowed, moves in [(0, False), (5, True)]:
        space, name = make_namespace(lab), f"llama-{allowed}"
        path = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{space}/jobsets"
        made = lab.admin("POST", path, {
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
            "metadata": {"name": name, "labels": MAY_MOVE},
            "spec": {"failurePolicy": {"maxRestarts": allowed}},
        })  # fmt: skip
        owner = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "name": name,
                 "uid": made["metadata"]["uid"], "controller": True}  # fmt: skip
        jobs = [make_job(lab, space, 1, owner=owner, backoff=0) for _ in range(2)]
        for job in jobs:
            run_pods(lab, space, f"train={job}", 1, places)
        step = move(f"{space}/JobSet/{name}", places[0])
        assert act.look(step).detail == "2 pods"
        if moves:
            assert "evicted 2 pods" in act.apply(step, fence())
        else:
            with pytest.raises(RefusedError, match="restart_budget"):
                act.apply(step, fence())


def test_unknown_owner_is_an_unknown_budget(lab: KubeLab, places: list[str]) -> None:
    """A kind that we do not know may count restarts: opted in or not, it is not moved."""
    define(lab, "example.com", "v1", "Trainer", "trainers")
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    path = f"/apis/example.com/v1/namespaces/{space}/trainers"
    made = lab.admin(
        "POST", path, {"apiVersion": "example.com/v1", "kind": "Trainer", "metadata": {"name": "x"}}
    )
    owner = {"apiVersion": "example.com/v1", "kind": "Trainer", "name": "x", "uid": made["metadata"]["uid"],
             "controller": True}  # fmt: skip
    job = make_job(lab, space, 1, owner=owner)
    run_pods(lab, space, f"train={job}", 1, places)
    with pytest.raises(RefusedError, match="restart_budget"):
        act.apply(move(f"{space}/Trainer/x", places[0]), fence())


def test_replicas_move_only_off_the_faulty_node(lab: KubeLab, places: list[str]) -> None:
    """Pods of a Deployment stand alone: the ones on healthy nodes stay."""
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    template = pod_template({"train": "serve"}, restartPolicy="Always")
    spec = {"replicas": 2, "selector": {"matchLabels": {"train": "serve"}}, "template": template}
    path = f"/apis/apps/v1/namespaces/{space}/deployments"
    lab.admin("POST", path, {"metadata": {"name": "serve"}, "spec": spec})
    old = run_pods(lab, space, "train=serve", 2, places)
    assert "evicted 1 pods" in act.apply(move(f"{space}/Deployment/serve", places[0]), fence())
    assert len(set(uids(lab, space, "serve")) & set(old)) == 1


def test_r4_a_replacement_of_the_same_name_is_spared(
    lab: KubeLab, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A StatefulSet's pod is replaced between our look and our eviction: the new one has another uid."""
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    spec = {"replicas": 1, "serviceName": "x", "selector": {"matchLabels": {"train": "set"}},
            "template": pod_template({"train": "set"}, restartPolicy="Always")}  # fmt: skip
    lab.admin(
        "POST", f"/apis/apps/v1/namespaces/{space}/statefulsets", {"metadata": {"name": "set"}, "spec": spec}
    )
    (old,) = run_pods(lab, space, "train=set", 1, places)

    def replaced(*_: object) -> None:
        lab.admin("DELETE", f"/api/v1/namespaces/{space}/pods/set-0?gracePeriodSeconds=0")
        wait(lambda: uids(lab, space, "set") not in ([], [old]), 30, lambda: "not replaced")

    monkeypatch.setattr(act._moving, "_wait_for_budgets", replaced)
    act.apply(move(f"{space}/StatefulSet/set", places[0]), fence())
    (new,) = uids(lab, space, "set")
    assert new != old


@pytest.mark.parametrize("job", ["", "*", "llama", "a/b", "../x/Job/y", "kube-system/Job/none"])
def test_r13_no_job_no_move(lab: KubeLab, places: list[str], job: str) -> None:
    with pytest.raises(RefusedError):
        actuator(lab).apply(move(job, places[0]), fence())


def test_gone_lease_stops_a_wait(lab: KubeLab, places: list[str]) -> None:
    """A wait for a budget ends with the lease, though the action has more time."""
    space, act = make_namespace(lab, MAY_MOVE), actuator(lab)
    job = make_job(lab, space, 1)
    run_pods(lab, space, f"train={job}", 1, places)
    make_budget(lab, space, {"train": job}, least=1)
    start = time.monotonic()
    with pytest.raises(RefusedError):
        act.apply(move(f"{space}/Job/{job}", places[0], deadline_s=60), fence(seconds=3))
    assert time.monotonic() - start < 9


def define(lab: KubeLab, group: str, version: str, kind: str, plural: str) -> None:
    """Teach the server a kind, without a schema, and wait until it is served."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    row = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    body = {"metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": [row]}}  # fmt: skip
    lab.admin("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
    served = f"/apis/{group}/{version}/namespaces/default/{plural}"
    wait(lambda: lab.try_get(served) is not None, 30, lambda: f"{kind} is not served")
