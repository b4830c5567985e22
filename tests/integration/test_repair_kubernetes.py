"""The whole loop on a real API server: fault, cordon, the gang moves, validation, clean wait, uncordon.

Judged from outside: by the objects and Events of the API server alone. Scheduler and kubelet are the test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from integration.kube_lab import KubeLab, wait
from integration.kube_site import HOME, TAINT, Site, cluster
from integration.kube_things import (
    MAY_MOVE,
    change_node,
    cordon,
    make_job,
    make_namespace,
    marks_of_ours,
    node,
    pod_template,
    pods_of,
    run_pod,
    run_pods,
)

from gpuvigil_collector.kube import view
from gpuvigil_collector.kube.api import KubeApi
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.repair.schedulers import KubernetesScheduler
from gpuvigil_protos.settings import Seconds

pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(600)]
SENTINEL = {"dgxc.nvidia.com/nvsentinel-state": "quarantined"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    """One cluster for this file: what is seen of another remediator holds for all of its nodes."""
    with cluster(tmp_path_factory.mktemp("kube")) as found:
        yield found


def bare_pod(lab: KubeLab, space: str, place: str) -> str:
    """Run a pod that nobody would make again; returns its uid."""
    labels = {**MAY_MOVE, "train": "bare"}
    body = {**pod_template(labels, gpus=2), "metadata": {"name": "bare", "labels": labels}}
    lab.admin("POST", f"/api/v1/namespaces/{space}/pods", body)
    run_pod(lab, space, "bare", place)
    return uids(lab, space, "bare")[0]


def uids(lab: KubeLab, space: str, train: str) -> list[str]:
    return [one["metadata"]["uid"] for one in pods_of(lab, space, f"train={train}")]


def ours(lab: KubeLab, name: str) -> list[str]:
    """The traces of gpuvigil on a node, without the label by which its owner split the fleet."""
    return [one for one in marks_of_ours(node(lab, name)) if one != "gpuvigil.io/remediator"]


def finish(lab: KubeLab, space: str, job: str) -> None:
    """Say that a job's one pod has ended well, as a kubelet does."""
    (pod,) = pods_of(lab, space, f"train={job}")
    path = f"/api/v1/namespaces/{space}/pods/{pod['metadata']['name']}/status"
    lab.admin("PATCH", path, {"status": {"phase": "Succeeded"}}, "strategic-merge", "kubelet")


def spec_of(lab: KubeLab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = node(lab, name)["spec"]
    return found


def test_r6_a_lost_gpu_from_cordon_to_uncordon(lab: KubeLab, tmp_path: Path) -> None:
    """The gang of two nodes moves as one, the bare pod elsewhere stays, nothing of ours is left."""
    bad, second, third = names = ["loop-1", "loop-2", "loop-3"]
    site = Site(lab, tmp_path, names)
    with site.run(bad, at_s=40, lasts_s=30):
        space = make_namespace(lab)
        job = make_job(lab, space, 2, labels=MAY_MOVE, gpus=4)
        old = run_pods(lab, space, f"train={job}", 2, [bad, second])
        alone = bare_pod(lab, space, third)
        stays = make_job(lab, space, 1, gpus=2)  # not opted in: its owner lets it end by itself
        run_pods(lab, space, f"train={stays}", 1, [bad])

        site.until(lambda: site.cordoned(bad), 120, "the cordon")
        held = node(lab, bad)
        assert TAINT in held["spec"]["taints"]
        (incident,) = site.rows("incidents?state=open")
        said = held["metadata"]["annotations"]
        assert said["gpuvigil.io/cordon-incidents"] == incident["id"] and incident["node"] == bad
        assert incident["class"] == "gpu_lost"

        site.until(lambda: not set(uids(lab, space, job)) & set(old), 60, "the gang's eviction")
        free = [name for name in names if not site.cordoned(name)]
        assert free == [second, third]
        run_pods(lab, space, f"train={job}", 2, free)
        site.until(lambda: site.told(bad, "kind=gpu_returned"), 120, "the GPU's return")
        site.until(lambda: site.denied(job=f"{space}/Job/{stays}"), 60, "the denial for who has not opted in")
        finish(lab, space, stays)

        site.until(lambda: not site.cordoned(bad), 180, "the release")
        site.until(lambda: site.rows("cases")[0]["outcome"], 30, "the end of the case")
        assert marks_of_ours(node(lab, bad)) == []
        assert uids(lab, space, "bare") == [alone] and len(uids(lab, space, job)) == 2
        assert site.events(bad) == ["CordonSucceeded", "DrainStarting", "DrainSucceeded", "UncordonSucceeded"]
        assert all(site.events(name) == [] and marks_of_ours(node(lab, name)) == [] for name in names[1:])
        (case,) = site.rows("cases")
        assert case["outcome"] == "returned" and case["moved"] == [f"{space}/Job/{job}"]
        kinds = [one["kind"] for one in site.rows("actions") if one["state"] == "done"]
        assert sorted(kinds) == ["hold", "move_job", "release", "validate"]
        assert site.told(bad, "event=validated") and site.told(bad, 'outcome="passed')


def test_r10_pause_others_and_an_admins_cordon_are_kept(lab: KubeLab, tmp_path: Path) -> None:
    """Paused, then another remediator, then a bare pod, then the admin's own cordon: each is honoured."""
    bad, other = names = ["kept-1", "kept-2"]
    site = Site(lab, tmp_path, names)
    pause = {"metadata": {"annotations": {"gpuvigil.io/pause": "firmware week"}}}
    lab.admin("PATCH", f"/api/v1/namespaces/{HOME}", pause)
    with site.run(bad, at_s=40, lasts_s=60):
        change_node(lab, other, {"metadata": {"labels": SENTINEL}})
        space = make_namespace(lab, MAY_MOVE)
        alone = bare_pod(lab, space, bad)
        job = make_job(lab, space, 1, gpus=4)
        old = run_pods(lab, space, f"train={job}", 1, [bad])

        site.until(lambda: site.denied("pause"), 120, "the pause's denial")
        pause["metadata"]["annotations"]["gpuvigil.io/pause"] = None  # type: ignore[assignment]
        lab.admin("PATCH", f"/api/v1/namespaces/{HOME}", pause)
        site.until(lambda: site.denied("ownership"), 60, "the denial for another remediator")
        assert marks_of_ours(node(lab, bad)) == [] and not site.cordoned(bad)

        for one in lab.admin("GET", "/api/v1/nodes")["items"]:
            name = one["metadata"]["name"]
            owner = "nvsentinel" if name == other else "gpuvigil"
            change_node(lab, name, {"metadata": {"labels": {"gpuvigil.io/remediator": owner}}})
        site.until(lambda: site.cordoned(bad), 60, "the cordon")
        site.until(lambda: not set(uids(lab, space, job)) & set(old), 60, "the eviction of what may move")
        site.until(lambda: site.denied(job=f"{space}/Pod/bare"), 60, "the denial for the bare pod")
        assert uids(lab, space, "bare") == [alone]

        cordon(lab, bad, on=False)
        cordon(lab, bad)
        site.until(lambda: site.told(bad, "kind=gpu_returned"), 150, "the GPU's return")
        assert uids(lab, space, "bare") == [alone] and ours(lab, bad)
        lab.admin("DELETE", f"/api/v1/namespaces/{space}/pods/bare", {"gracePeriodSeconds": 0})
        site.until(lambda: not ours(lab, bad), 120, "the release")
        assert spec_of(lab, bad)["unschedulable"] is True
        assert TAINT not in spec_of(lab, bad).get("taints", [])
        site.until(lambda: site.rows("cases")[0]["outcome"] == "returned", 30, "the end of the case")


def test_r10_an_annotation_reaches_the_kernel_within_5_s(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a large cluster is still being read; and what cannot be read is a pause."""
    stuck, reads = threading.Event(), []

    def slow(api: KubeApi, settings: KubernetesSettings) -> view.KubernetesView:
        if reads:
            stuck.wait(60)
        reads.append(1)
        return read(api, settings)

    read = view.read
    monkeypatch.setattr(view, "read", slow)
    monkeypatch.setattr("gpuvigil_collector.repair.schedulers._KUBE_EVERY_S", 0.1)
    settings = KubernetesSettings(kubeconfig=str(lab.kubeconfig), namespace=HOME, call_timeout=Seconds(2))
    scheduler = KubernetesScheduler(settings)

    def paused() -> str | None:
        found = scheduler.view()
        return found.paused if found is not None else None

    try:
        wait(lambda: paused() == "", 30, lambda: f"not read: {scheduler.trouble()}")
        for word in ("firmware week", None):
            body = {"metadata": {"annotations": {"gpuvigil.io/pause": word}}}
            lab.admin("PATCH", f"/api/v1/namespaces/{HOME}", body)
            seen = partial(lambda wanted: (wanted in (paused() or "")) if wanted else paused() == "", word)
            wait(seen, 5, lambda: f"{paused()!r}")
        assert len(reads) == 1
        with lab.frozen():
            wait(lambda: "cannot be read" in (paused() or ""), 30, lambda: f"{paused()!r}")
        wait(lambda: paused() == "", 30, lambda: f"{paused()!r}")
    finally:
        stuck.set()
        scheduler.stop()
