"""Hardware that begins to fail under a running job asks for a checkpoint, once, and nothing else does."""

from __future__ import annotations

import pytest
from unit.brain_help import Rig
from unit.incident_help import finding


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path, nodes=3, gpus=2)
    for rank in range(2):
        fields = {"world_size": "2", "on_request": "save", "gpu": f"GPU-n0-{rank}"}
        made.fleet.event("n0", "rank_up", f"rank:j/{rank}", origin="job", fields=fields)
    made.tick()
    return made


def test_a_failing_gpu_of_the_job_saves_it_once_and_in_its_own_name(rig):
    rig.rules.findings = [finding("row_remap_failure", "n0/gpu:GPU-n0-1")]
    for _ in range(4):
        rig.tick()
    [command] = rig.sent
    assert (command.node, command.verb, command.arguments["job"]) == ("n0", "save", "j")
    [incident] = rig.pipeline.tracker.open
    [request] = rig.pipeline.desk.requests.values()
    assert request.by == incident


@pytest.mark.parametrize(("fault_class", "target"), [
    ("row_remap_failure", "n1/gpu:GPU-n1-0"),  # another node's
    ("gpu_lost", "n0/gpu:GPU-n0-1"),  # nothing left to save with
    ("xid_application", "n0/gpu:GPU-n0-1"),  # the job's own
    ("thermal", "n0/gpu:GPU-n0-7"),  # a GPU that no rank of it uses
])  # fmt: skip
def test_what_does_not_threaten_it_asks_for_nothing(rig, fault_class, target):
    rig.rules.findings = [finding(fault_class, target)]
    for _ in range(4):
        rig.tick()
    assert rig.sent == []


def test_a_drill_touches_no_job(rig):
    rig.rules.findings = [finding("row_remap_failure", "n0/gpu:GPU-n0-1", synthetic=True)]
    rig.tick(), rig.tick(), rig.tick()
    assert rig.pipeline.tracker.open and rig.sent == []


def test_a_flapping_nic_of_its_node_does(rig):
    rig.rules.findings = [finding("nic_flap", "n0/interface:ib0", severity="warning")]
    rig.tick(), rig.tick(), rig.tick()
    assert len(rig.sent) == 1
