"""What the safety kernel is told of a real cluster."""

from __future__ import annotations

import time
from typing import Any

import pytest
from integration.kube_lab import KubeLab, lab, wait
from integration.kube_things import (
    MAY_MOVE,
    action,
    actuator,
    change_node,
    cordon,
    fence,
    make_budget,
    make_job,
    make_namespace,
    make_node,
    pod_template,
    run_pod,
    run_pods,
)

from gpuvigil_collector.action import RefusedError
from gpuvigil_collector.kube.api import KubeError
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.kube.view import KubernetesView, read

__all__ = ["lab"]
pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(300)]


def view(lab: KubeLab, **settings: Any) -> KubernetesView:
    return read(lab.api(), KubernetesSettings(**settings))


def test_whose_hold_stands_on_each_node(lab: KubeLab) -> None:
    free, held, foreign, taken = (make_node(lab) for _ in range(4))
    act = actuator(lab)
    act.apply(action("hold", held), fence())
    act.apply(action("hold", taken), fence())
    cordon(lab, foreign)
    cordon(lab, taken, on=False)
    nodes = view(lab).nodes
    assert [nodes[n].hold for n in (free, held, foreign, taken)] == ["none", "ours", "foreign", "none"]
    assert "INC-1" in nodes[held].held_why and "taken off" in nodes[taken].held_why


def test_domain_partition_maintenance_and_protection(lab: KubeLab) -> None:
    labels = {"topology.kubernetes.io/zone": "z1", "karpenter.sh/nodepool": "h100"}
    plain = make_node(lab, labels=labels)
    clique = make_node(lab, labels={**labels, "nvidia.com/gpu.clique": "nvl72-a.1"})
    upgrade = make_node(lab, labels={"nvidia.com/gpu-driver-upgrade-state": "pod-restart-required"})
    done = make_node(lab, labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"})
    plane = make_node(lab, labels={"node-role.kubernetes.io/master": ""})
    leaving = make_node(lab)
    going = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}
    change_node(lab, leaving, {"spec": {"taints": [going]}})
    nodes = view(lab).nodes
    assert (nodes[plain].domain, nodes[plain].partition) == ("z1", "h100")
    assert nodes[clique].domain == "nvl72-a.1"
    assert "driver upgrade" in nodes[upgrade].maintenance and nodes[done].maintenance == ""
    assert "scale-down" in nodes[leaving].maintenance and "control plane" in nodes[plane].protected
    assert nodes[plain].maintenance == nodes[plain].protected == nodes[plain].remediator == ""


def test_another_remediator_counts_until_split_by_label(lab: KubeLab) -> None:
    """NVSentinel seen on one node: act is refused everywhere, until each node says whose it is."""
    theirs, plain = make_node(lab, labels={"dgxc.nvidia.com/nvsentinel-state": "quarantined"}), make_node(lab)
    found = view(lab)
    assert "NVSentinel" in found.nodes[theirs].remediator and "NVSentinel" in found.others
    for one in found.nodes:
        owner = "nvsentinel" if one == theirs else "gpuvigil"
        change_node(lab, one, {"metadata": {"labels": {"gpuvigil.io/remediator": owner}}})
    split = view(lab)
    assert split.others == "" and split.nodes[theirs].remediator == "nvsentinel"
    assert split.nodes[plain].remediator == ""
    change_node(lab, theirs, {"metadata": {"labels": {"dgxc.nvidia.com/nvsentinel-state": None}}})


def test_jobs_their_nodes_and_why_not(lab: KubeLab) -> None:
    one, two = make_node(lab), make_node(lab)
    space, closed = make_namespace(lab, MAY_MOVE), make_namespace(lab)
    job, shut = make_job(lab, space, 2), make_job(lab, closed, 1, backoff=1)
    run_pods(lab, space, f"train={job}", 2, [one, two])
    run_pods(lab, closed, f"train={shut}", 1, [one])
    make_budget(lab, space, {"train": job}, least=2)
    labels = {"train": "bare"}
    bare = {**pod_template(labels, gpus=2), "metadata": {"name": "bare", "labels": labels}}
    lab.admin("POST", f"/api/v1/namespaces/{space}/pods", bare)
    run_pod(lab, space, "bare", two)
    found = view(lab)
    gang = found.jobs[f"{space}/Job/{job}"]
    assert gang.nodes == tuple(sorted((one, two))) and gang.gpus == 16
    assert gang.refusals == ("disruption_budget",)
    assert set(found.jobs[f"{closed}/Job/{shut}"].refusals) == {"not_opted_in", "restart_budget"}
    assert found.jobs[f"{space}/Pod/bare"].refusals == ("bare_pod",)
    assert set(found.nodes[one].jobs) == {f"{space}/Job/{job}", f"{closed}/Job/{shut}"}
    assert {place for *_, place in found.job_pods[f"{space}/Job/{job}"]} == {one, two}


def test_r7_a_gang_waits_until_its_budget_lets_it_go(lab: KubeLab) -> None:
    """One of two may go now: the gang may not, the next read says when it may."""
    place, space = make_node(lab), make_namespace(lab, MAY_MOVE)
    job = make_job(lab, space, 2, gpus=4)
    run_pods(lab, space, f"train={job}", 2, [place])
    path = f"/apis/policy/v1beta1/namespaces/{space}/poddisruptionbudgets"
    budget = make_budget(lab, space, {"train": job}, least=1)

    def allowed() -> int:
        return int(lab.admin("GET", f"{path}/{budget}")["status"]["disruptionsAllowed"])

    wait(lambda: allowed() == 1, 30, lambda: f"{allowed()}")
    assert view(lab).jobs[f"{space}/Job/{job}"].refusals == ("disruption_budget",)
    lab.admin("PATCH", f"{path}/{budget}", {"spec": {"minAvailable": 0}})
    wait(lambda: allowed() == 2, 30, lambda: f"{allowed()}")
    assert view(lab).jobs[f"{space}/Job/{job}"].refusals == ()


def test_a_node_that_lost_all_its_gpus_is_still_there(lab: KubeLab) -> None:
    name = make_node(lab, gpus=0)
    assert view(lab).nodes[name].gpus == 0


def test_r10_an_annotation_pauses_with_the_collector_down(lab: KubeLab) -> None:
    assert view(lab, namespace="kube-public").paused == ""
    path = "/api/v1/namespaces/kube-public"
    lab.admin("PATCH", path, {"metadata": {"annotations": {"gpuvigil.io/pause": "firmware week"}}})
    assert "firmware week" in view(lab, namespace="kube-public").paused
    lab.admin("PATCH", path, {"metadata": {"annotations": {"gpuvigil.io/pause": ""}}})
    assert view(lab, namespace="kube-public").paused
    lab.admin("PATCH", path, {"metadata": {"annotations": {"gpuvigil.io/pause": None}}})


def test_pages_limits_and_a_frozen_server(lab: KubeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        make_node(lab)
    whole = view(lab)
    monkeypatch.setattr("gpuvigil_collector.kube.api._PAGE", 2)
    assert view(lab).nodes == whole.nodes
    with pytest.raises(KubeError, match="at most 3"):
        view(lab, nodes_max=3)
    with lab.frozen():
        start = time.monotonic()
        with pytest.raises(KubeError, match=r"no answer|no connection"):
            read(lab.api(call_s=1), KubernetesSettings())
        assert time.monotonic() - start < 5


def test_r5_marks_that_make_no_sense_are_nobodys(lab: KubeLab) -> None:
    """Altered by hand: unknown to a look, refused, and no reason to be blind to the other nodes."""
    name, other = make_node(lab), make_node(lab)
    change_node(lab, name, {"metadata": {"annotations": {"gpuvigil.io/cordon-generation": "-1"}}})
    found = view(lab).nodes
    assert found[name].hold == "foreign" and "cordon-generation" in found[name].held_why
    assert found[other].hold == "none"
    assert actuator(lab).look(action("hold", name)).state == "unknown"
    for kind in ("hold", "release"):
        with pytest.raises(RefusedError, match="cordon-generation"):
            actuator(lab).apply(action(kind, name), fence())
    change_node(lab, name, {"metadata": {"annotations": {"gpuvigil.io/cordon-generation": None}}})
