"""Hold and release on a real API server: cordon, taint, marks, Event, and what they are refused for."""

from __future__ import annotations

import time
from typing import Any

import pytest
from integration.kube_lab import KubeLab, lab
from integration.kube_things import (
    action,
    actuator,
    change_node,
    fence,
    make_namespace,
    make_node,
    marks_of_ours,
    node,
)

from gpuvigil_collector.action import AmbiguousError, RefusedError
from gpuvigil_collector.kube.marks import ANNOTATIONS, TAINT_KEY

__all__ = ["lab"]
pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(300)]


def test_hold_and_release_leave_no_trace(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    before = node(lab, name)
    assert act.look(action("hold", name)).state == "absent"
    assert "cordoned" in act.apply(action("hold", name), fence())
    held = node(lab, name)
    assert held["spec"]["unschedulable"] is True
    assert {t["key"]: t["effect"] for t in held["spec"]["taints"]}[TAINT_KEY] == "NoSchedule"
    said = held["metadata"]["annotations"]
    assert said["gpuvigil.io/cordon-by"] == "collector-a" and said["gpuvigil.io/cordon-incidents"] == "INC-1"
    assert said["gpuvigil.io/cordon-generation"] == "1" and "Xid 79" in said["gpuvigil.io/cordon-reason"]
    assert act.look(action("hold", name)).state == "done"
    assert act.look(action("release", name)).state == "absent"
    act.apply(action("release", name), fence())
    free = node(lab, name)
    assert marks_of_ours(free) == [] and not free["spec"].get("unschedulable")
    assert set(before["metadata"].get("annotations", {})) <= set(free["metadata"]["annotations"])
    assert act.look(action("release", name)).state == "done"


def test_a_second_hold_changes_nothing(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    act.apply(action("hold", name), fence())
    version = settled(lab, name)
    act.apply(action("hold", name), fence())
    assert node(lab, name)["metadata"]["resourceVersion"] == version


def settled(lab: KubeLab, name: str) -> str:
    """Wait until the controllers have reacted to a change; return the version that stays."""
    last, same = "", 0
    while same < 5:
        found = str(node(lab, name)["metadata"]["resourceVersion"])
        same = same + 1 if found == last else 0
        last = found
        time.sleep(0.1)
    return last


def test_events_tell_people_on_the_node(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    act.apply(action("hold", name), fence())
    act.apply(action("release", name), fence())
    path = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={name}"
    told = {one["reason"]: one for one in lab.admin("GET", path)["items"]}
    assert told["CordonSucceeded"]["type"] == "Warning" and "INC-1" in told["CordonSucceeded"]["message"]
    assert told["UncordonSucceeded"]["source"]["component"] == "gpuvigil"


def test_condition_is_written_true_and_taken_away(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab, condition="GpuvigilFault")
    act.apply(action("hold", name), fence())
    rows = {one["type"]: one for one in node(lab, name)["status"]["conditions"]}
    assert rows["GpuvigilFault"]["status"] == "True" and rows["Ready"]["status"] == "True"
    act.apply(action("release", name), fence())
    assert [one["type"] for one in node(lab, name)["status"]["conditions"]] == ["Ready"]


def test_two_incidents_hold_until_the_last(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    act.apply(action("hold", name), fence())
    assert act.look(action("hold", name, incident="INC-2")).state == "absent"
    act.apply(action("hold", name, incident="INC-2"), fence())
    assert "stays held" in act.apply(action("release", name), fence())
    assert node(lab, name)["spec"]["unschedulable"] is True
    act.apply(action("release", name, incident="INC-2"), fence())
    assert marks_of_ours(node(lab, name)) == [] and not node(lab, name)["spec"].get("unschedulable")


def test_an_older_generation_and_a_lost_lease_are_refused(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    act.apply(action("hold", name), fence(generation=7))
    stale = actuator(lab)
    with pytest.raises(RefusedError, match="marked by generation 7"):
        stale.apply(action("release", name), fence(generation=6))
    with pytest.raises(RefusedError, match="lease"):
        act.apply(action("release", name), fence(generation=7, seconds=-1))
    assert act.look(action("hold", name)).state == "done"


def test_r2_a_stale_leader_is_told_by_the_lease_itself(lab: KubeLab) -> None:
    """Stopped after its last look at its lease: on a node without marks the Lease says who came since."""
    name, space = make_node(lab), make_namespace(lab)
    spec = {"holderIdentity": "collector-b", "leaseTransitions": 9, "leaseDurationSeconds": 30}
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases"
    lab.admin("POST", leases, {"metadata": {"name": "gpuvigil-collector"}, "spec": spec})
    with pytest.raises(RefusedError, match="the Lease says 9"):
        actuator(lab, namespace=space).apply(action("hold", name), fence(generation=8))
    assert marks_of_ours(node(lab, name)) == []
    actuator(lab, namespace=space).apply(action("hold", name), fence(generation=9))


@pytest.mark.parametrize(
    ("labels", "annotations", "why"),
    [
        ({"gpuvigil.io/opt-out": "true"}, {}, "opt-out"),
        ({"node-role.kubernetes.io/control-plane": ""}, {}, "control plane"),
        ({"nvidia.com/gpu-driver-upgrade-state": "drain-required"}, {}, "driver upgrade"),
        ({"dgxc.nvidia.com/nvsentinel-state": "draining"}, {}, "NVSentinel"),
        ({}, {"gpuvigil.io/pause": "swap NIC"}, "swap NIC"),
    ],
)
def test_r7_protected_nodes_are_refused(
    lab: KubeLab, labels: dict[str, str], annotations: dict[str, str], why: str
) -> None:
    name, act = make_node(lab, labels=labels), actuator(lab)
    change_node(lab, name, {"metadata": {"annotations": annotations}})
    with pytest.raises(RefusedError, match=why):
        act.apply(action("hold", name), fence())
    assert not node(lab, name)["spec"].get("unschedulable")


def test_no_release_during_others_maintenance(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    act.apply(action("hold", name), fence())
    change_node(
        lab, name, {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "cordon-required"}}}
    )
    with pytest.raises(RefusedError, match="maintenance"):
        act.apply(action("release", name), fence())
    assert act.look(action("hold", name)).state == "done"


@pytest.mark.parametrize("place", ["no-such-node", "", "*", "../pods", "a b", "gpu-node-1/status"])
def test_r13_unknown_and_empty_nodes_are_refused(lab: KubeLab, place: str) -> None:
    act = actuator(lab)
    assert act.look(action("hold", place)).state == "unknown"
    with pytest.raises(RefusedError):
        act.apply(action("hold", place), fence())


def test_r4_a_frozen_server_is_ambiguous_and_looking_tells(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request reaches the server, which stands still: nobody can tell. It goes on: a look tells."""
    name, act = make_node(lab), actuator(lab, call_s=2.0)
    patch = act._calls.api.patch

    def into_the_ice(*arguments: Any, **more: Any) -> Any:
        with lab.frozen():
            return patch(*arguments, **more)

    monkeypatch.setattr(act._calls.api, "patch", into_the_ice)
    with pytest.raises(AmbiguousError, match="no answer"):
        act.apply(action("hold", name), fence())
    monkeypatch.setattr(act._calls.api, "patch", patch)
    settled(lab, name)
    seen = act.look(action("hold", name)).state
    assert seen in ("done", "absent")
    act.apply(action("hold", name), fence())  # whichever it was, once more is no second effect
    taints = [t for t in node(lab, name)["spec"]["taints"] if t["key"] == TAINT_KEY]
    assert len(taints) == 1 and node(lab, name)["metadata"]["annotations"][ANNOTATIONS[1]] == "INC-1"


def test_a_frozen_server_is_unknown_to_a_look(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab, call_s=1.0)
    with lab.frozen():
        start = time.monotonic()
        assert act.look(action("hold", name)).state == "unknown"
        with pytest.raises(RefusedError):  # the read before the change failed: nothing has happened
            act.apply(action("hold", name), fence())
        assert time.monotonic() - start < 10
