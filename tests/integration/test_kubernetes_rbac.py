"""The shipped permissions on a real API server: observe cannot write; act holds and evicts, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from integration.kube_lab import TOKEN, KubeLab, lab
from integration.kube_things import (
    MAY_MOVE,
    action,
    cordon,
    fence,
    make_job,
    make_namespace,
    make_node,
    marks_of_ours,
    node,
    run_pods,
)

from gpuvigil_collector.action import RefusedError
from gpuvigil_collector.actuators.kubernetes import KubernetesActuator
from gpuvigil_collector.kube.lease import KubernetesLease
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.kube.view import read

__all__ = ["lab"]
pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(300)]
MANIFESTS = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
US = "system:serviceaccount:gpuvigil:gpuvigil-collector"
WHERE = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
}


def send(lab: KubeLab, method: str, path: str, body: object = None, user: str = US, **more: Any) -> int:
    """Send one request as somebody; return its status."""
    headers = {"Authorization": f"Bearer {TOKEN}", **more.pop("headers", {})}
    if user:
        headers["Impersonate-User"] = user
    with httpx2.Client(base_url=lab.server, verify=False, timeout=10, headers=headers) as client:
        content = body if isinstance(body, bytes) else None
        answer = client.request(method, path, json=None if content else body, content=content, **more)
    return answer.status_code


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def apply(lab: KubeLab, made: dict[str, Any], *, dry: bool) -> int:
    """What `kubectl apply --server-side` sends; the server refuses fields that it does not know."""
    meta = made["metadata"]
    path = f"{WHERE[made['kind']].format(meta.get('namespace'))}/{meta['name']}"
    query = {"fieldManager": "kubectl"} | ({"dryRun": "All"} if dry else {})
    headers = {"Content-Type": "application/apply-patch+yaml"}
    return send(lab, "PATCH", path, yaml.safe_dump(made).encode(), "", params=query, headers=headers)


@pytest.fixture
def observing(lab: KubeLab) -> KubeLab:
    """The cluster with observe.yaml alone."""
    for made in objects("observe.yaml"):
        assert apply(lab, made, dry=False) in (200, 201), made["kind"]
    return lab


@pytest.fixture
def acting(observing: KubeLab) -> KubeLab:
    """The cluster with act.yaml besides. Tests that use it come last in this file."""
    for made in objects("act.yaml"):
        assert apply(observing, made, dry=False) in (200, 201), made["kind"]
    return observing


@pytest.mark.parametrize("name", ["observe.yaml", "act.yaml"])
def test_manifests_pass_the_servers_dry_run(observing: KubeLab, name: str) -> None:
    for made in objects(name):
        assert apply(observing, made, dry=True) in (200, 201), made
        assert apply(observing, {**made, "misspelt": True}, dry=True) >= 400, "the dry run sees nothing"


def ours(lab: KubeLab) -> KubernetesActuator:
    return KubernetesActuator(lab.api(as_user=US), KubernetesSettings())


def test_observe_reads_the_cluster_and_keeps_its_lease(observing: KubeLab) -> None:
    name = make_node(observing)
    view = read(observing.api(as_user=US), KubernetesSettings())
    assert view.nodes[name].gpus == 8
    lease = KubernetesLease(observing.api(as_user=US), "gpuvigil")
    lease.renew()
    assert lease.fence() is not None, lease.fault
    lease.stop()


def test_r9_observe_cannot_write(observing: KubeLab) -> None:
    """All that act does, tried with observe's rights: refused by the server, nothing changed."""
    space, act = make_namespace(observing, MAY_MOVE), ours(observing)
    name = make_node(observing)
    job = make_job(observing, space, 1)
    run_pods(observing, space, f"train={job}", 1, [name])
    with pytest.raises(RefusedError, match="403"):
        act.apply(action("hold", name), fence())
    with pytest.raises(RefusedError, match="403"):
        act.apply(action("move_job", name, job=f"{space}/Job/{job}"), fence())
    assert marks_of_ours(node(observing, name)) == [] and not node(observing, name)["spec"].get(
        "unschedulable"
    )
    assert forbidden(observing, space, name, EVERY_WRITE) == EVERY_WRITE


EVERY_WRITE = [
    "PATCH node", "PUT node", "DELETE node", "PATCH node/status", "POST node", "POST event", "DELETE pod",
    "PATCH pod", "POST eviction", "DELETE pods", "PATCH job", "DELETE job", "PATCH namespace", "GET secrets",
    "POST lease", "DELETE lease", "PATCH other lease", "POST rolebinding",
]  # fmt: skip
ACT_MAY = {"PATCH node", "PATCH node/status", "POST event", "POST eviction"}


def forbidden(lab: KubeLab, space: str, place: str, words: list[str]) -> list[str]:
    """Return which of the requests the server forbids us, by dry run."""
    job, pods = f"/apis/batch/v1/namespaces/{space}/jobs", f"/api/v1/namespaces/{space}/pods"
    leases = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
    pod = lab.admin("GET", pods)["items"][0]["metadata"]["name"]
    paths = {
        "node": f"/api/v1/nodes/{place}", "node/status": f"/api/v1/nodes/{place}/status",
        "event": "/api/v1/namespaces/default/events", "pod": f"{pods}/{pod}", "pods": pods,
        "eviction": f"{pods}/{pod}/eviction", "job": f"{job}/x", "namespace": f"/api/v1/namespaces/{space}",
        "secrets": "/api/v1/secrets", "lease": f"{leases.format('gpuvigil')}/gpuvigil-collector",
        "other lease": f"{leases.format('kube-system')}/kube-scheduler",
        "rolebinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    }  # fmt: skip
    found = []
    for word in words:
        method, _, thing = word.partition(" ")
        path = paths[thing]
        if word in ("POST node", "POST lease"):
            path = path.rpartition("/")[0]
        headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        body = None if method in ("GET", "DELETE") else {}
        if send(lab, method, path, body, params={"dryRun": "All"}, headers=headers) == 403:
            found.append(word)
    return found


def test_act_holds_evicts_and_nothing_more(acting: KubeLab) -> None:
    space, act = make_namespace(acting, MAY_MOVE), ours(acting)
    name = make_node(acting)
    job = make_job(acting, space, 1)
    run_pods(acting, space, f"train={job}", 1, [name])
    act.apply(action("hold", name), fence())
    assert set(EVERY_WRITE) - set(forbidden(acting, space, name, EVERY_WRITE)) == ACT_MAY
    act.apply(action("move_job", name, job=f"{space}/Job/{job}"), fence())
    act.apply(action("release", name), fence())
    assert marks_of_ours(node(acting, name)) == [] and act._calls.events_lost == 0


def test_r9_taking_act_away_stops_it_at_once(acting: KubeLab) -> None:
    name = make_node(acting)
    for made in objects("act.yaml"):
        path = f"{WHERE[made['kind']].format(made['metadata'].get('namespace'))}/{made['metadata']['name']}"
        acting.admin("DELETE", path)
    with pytest.raises(RefusedError, match="403"):
        ours(acting).apply(action("hold", name), fence())
    cordon(acting, name)
    assert node(acting, name)["spec"]["unschedulable"] is True
