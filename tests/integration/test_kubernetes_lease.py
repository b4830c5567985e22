"""The lease on a real API server: one of two acts, generations grow, nobody takes over too early."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from integration.kube_lab import KubeLab, lab
from integration.kube_things import make_namespace

from gpuvigil_collector import lease
from gpuvigil_collector.kube.lease import NAME, KubernetesLease

__all__ = ["lab"]
pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(300)]


class Clock:
    """Wall and steady time of one collector, set by the test."""

    def __init__(self, wall_ns: int = 0) -> None:
        self.steady_ns, self.wall_ns = 10**9, wall_ns or time.time_ns()

    def sleep(self, seconds: float) -> None:
        self.steady_ns += int(seconds * 1e9)
        self.wall_ns += int(seconds * 1e9)


def make(lab: KubeLab, space: str, name: str, clock: Clock) -> KubernetesLease:
    clocks = lease.Clock(wall=lambda: clock.wall_ns, steady=lambda: clock.steady_ns)
    return KubernetesLease(lab.api(), space, lease_s=30, holder=name, clock=clocks)


@pytest.fixture
def space(lab: KubeLab) -> str:
    """A namespace with the empty Lease of deploy/kubernetes/observe.yaml."""
    name = make_namespace(lab)
    lab.admin("POST", f"/apis/coordination.k8s.io/v1/namespaces/{name}/leases", {"metadata": {"name": NAME}})
    return name


def record(lab: KubeLab, space: str) -> dict[str, Any]:
    spec = lab.admin("GET", f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases/{NAME}")["spec"]
    assert isinstance(spec, dict)
    return spec


def test_one_of_two_holds_it_and_renews(lab: KubeLab, space: str) -> None:
    clock = Clock()
    one, two = make(lab, space, "one", clock), make(lab, space, "two", clock)
    one.renew()
    two.renew()
    fence = one.fence()
    assert fence is not None and two.fence() is None and "held by one" in two.state()
    assert record(lab, space)["leaseTransitions"] == fence.generation
    for _ in range(10):
        clock.sleep(10)
        one.renew()
        two.renew()
    renewed = one.fence()
    assert renewed is not None and renewed.generation == fence.generation and two.fence() is None


def test_takeover_waits_a_whole_lease_and_raises_the_generation(lab: KubeLab, space: str) -> None:
    clock = Clock()
    one, two = make(lab, space, "one", clock), make(lab, space, "two", clock)
    one.renew()
    first = one.fence()
    assert first is not None
    two.renew()
    clock.sleep(29)
    two.renew()
    assert two.fence() is None and one.fence() is None, "under half of it left: nobody begins anything"
    clock.sleep(2)
    two.renew()
    second = two.fence()
    assert second is not None and second.generation == first.generation + 1
    one.renew()
    assert one.fence() is None and "held by two" in one.state()


def test_clocks_that_disagree_do_not_shorten_it(lab: KubeLab, space: str) -> None:
    """The waiter's wall clock is an hour ahead: renewTime looks ancient to it, and counts for nothing."""
    here, ahead = Clock(), Clock(time.time_ns() + 3600 * 10**9)
    one, two = make(lab, space, "one", here), make(lab, space, "two", ahead)
    one.renew()
    two.renew()
    assert one.fence() is not None and two.fence() is None


def test_given_back_is_taken_at_once(lab: KubeLab, space: str) -> None:
    clock = Clock()
    one, two = make(lab, space, "one", clock), make(lab, space, "two", clock)
    one.renew()
    first = one.fence()
    one.stop()
    two.renew()
    second = two.fence()
    assert one.fence() is None
    assert first is not None and second is not None and second.generation == first.generation + 1


def test_a_new_lease_never_goes_back_to_an_old_generation(lab: KubeLab, space: str) -> None:
    """Deleted and made again: the first holder's generation is above all that were."""
    clock = Clock()
    one = make(lab, space, "one", clock)
    one.renew()
    first = one.fence()
    base = f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases"
    lab.admin("DELETE", f"{base}/{NAME}")
    lab.admin("POST", base, {"metadata": {"name": NAME}})
    clock.sleep(5)
    two = make(lab, space, "two", clock)
    two.renew()
    second = two.fence()
    assert first is not None and second is not None and second.generation > first.generation
    one.renew()
    assert one.fence() is None


def test_many_at_once_one_wins(lab: KubeLab, space: str) -> None:
    """Eight holders race for a free lease, ten times: never two fences, no generation twice."""
    generations = []
    for _ in range(10):
        racers = [make(lab, space, f"racer{n}", Clock()) for n in range(8)]
        threads = [threading.Thread(target=one.renew) for one in racers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        fences = [fence for fence in (one.fence() for one in racers) if fence]
        assert len(fences) == 1
        generations.append(fences[0].generation)
        for one in racers:
            one.stop()
    assert generations == sorted(set(generations))


def test_no_lease_frozen_server_and_nonsense_only_observe(lab: KubeLab, space: str) -> None:
    clock = Clock()
    nowhere = make(lab, make_namespace(lab), "one", clock)
    nowhere.renew()
    assert nowhere.fence() is None and "404" in nowhere.fault
    held = make(lab, space, "two", clock)
    held.renew()
    assert held.fence() is not None
    with lab.frozen():
        clock.sleep(10)
        held.renew()
        assert "only observes" in held.fault
        assert held.fence() is not None, "what is left of the old lease still counts"
        clock.sleep(10)
        assert held.fence() is None
    path = f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases/{NAME}"
    lab.admin("PATCH", path, {"spec": {"holderIdentity": "x", "leaseDurationSeconds": 999999}})
    held.renew()
    assert held.fence() is None and "leaseDurationSeconds" in held.fault
