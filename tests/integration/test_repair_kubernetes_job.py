"""A training job in a pod whose GPU is lost, on a real API server: saved, moved, resumed; its node mended.

The pod is a process of this machine (kube_kubelet.py); who it is, the agent learns from its control group.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from integration.kube_repair import JOB, kube_fleet
from integration.kube_things import marks_of_ours, node
from integration.repair_base import INTERVAL
from integration.repair_watch import offend, watch

pytestmark = [pytest.mark.needs_kube, pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_lost_gpu_under_a_job_from_checkpoint_to_return(tmp_path: Path) -> None:
    with kube_fleet(tmp_path) as fleet:
        fleet.start(lease_s=60)
        times = watch(fleet)
        [request] = [row for row in fleet.saves() if row[3] != "-"]
        steps = fleet.steps()
        resumed = next(place for place, step in enumerate(steps) if step.node != "gn1")
        assert steps[resumed].step == request[2] + 1, "from the checkpoint that was asked for"
        assert 0 <= times.redone <= INTERVAL
        assert steps[-1].sum == sum(range(steps[-1].step + 1)), "nothing was lost or done twice in the state"
        [case] = fleet.cases()
        assert (case["outcome"], case["moved"]) == ("returned", [f"{fleet.space}/Job/{JOB}"])
        assert not fleet.held() and not marks_of_ours(node(fleet.lab, "gn1"))
        assert fleet.where() in {"gn2", "gn3", "gn4"}
        account = fleet.get(f"goodput/{JOB}")
        assert len(account["losses"]) == 1


def test_a_node_that_fails_a_third_time_is_kept_for_a_person(tmp_path: Path) -> None:
    # one fault domain, where the shipped pause between two holds is 30 minutes
    limits = '[remediation.limits]\ndomain_pause = "1s"\n'
    with kube_fleet(tmp_path, clean_wait_s=5, again_s=(60, 125), more=limits) as fleet:
        fleet.start(lease_s=60)
        held = offend(fleet)
        assert len(held) == 3 and held[1] > held[0] + 3, "the second clean wait is twice the first"
        cases = fleet.cases()
        assert [case["outcome"] for case in cases] == ["returned", "returned", "handed_over"]
        assert cases[-1]["trail"][-1]["what"] == "taken out three times in seven days: a person returns it"
        assert fleet.held()
