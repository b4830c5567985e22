"""The whole loop on a real Slurm: a GPU is lost under a job, and the node comes back proven, nothing lost.

Every limit of the safety kernel is the shipped one, and so is the policy. Judged from outside: Slurm's own
word on nodes and jobs, slurmctld's log, the files that the job writes, what the site's power tool was told.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.repair_base import INTERVAL
from integration.repair_fleet import RepairFleet, repair_fleet
from integration.repair_kill import kill_at, repeated
from integration.repair_watch import told, watch
from integration.slurm_lab import SlurmLab, until
from integration.slurm_verdicts import VerdictNode

pytestmark = [pytest.mark.needs_slurm, pytest.mark.slow, pytest.mark.timeout(400)]
STEPS = ["capture_evidence", "checkpoint", "hold", "move_job", "reboot", "validate", "validate", "release"]
EFFECTS = ["hold", "move_job", "reboot", "validate", "release"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that slurmd's jobs reach."""
    return tmp_path


def changes(fleet: RepairFleet, since: int, word: str) -> list[str]:
    """Lines of slurmctld's own log since a place in it that have a word."""
    text = (fleet.slurm.folder / "log/slurmctld.log").read_bytes()[since:].decode(errors="replace")
    return [line for line in text.splitlines() if word in line]


def log_size(slurm: SlurmLab) -> int:
    return (slurm.folder / "log/slurmctld.log").stat().st_size


def takes_work_again(fleet: RepairFleet) -> None:
    """Nothing of ours is left on the node, and Slurm hears its slurmd ("idle*" until then)."""
    assert fleet.node_says("gn1")[1] == "", "no drain of ours is left"
    until(lambda: fleet.node_says("gn1") == ("idle", ""), "gn1 takes work again", within_s=60)


def nothing_lost(fleet: RepairFleet) -> None:
    """The job went on elsewhere from the checkpoint that was asked for, or a later one, and lost no step."""
    steps = fleet.steps()
    first = [step for step in steps if step.restarts == 0]
    second = [step for step in steps if step.restarts == 1]
    assert {step.node for step in first} == {"gn1"} and {step.node for step in second}.isdisjoint({"gn1"})
    assert len(first) + len(second) == len(steps), "it was started twice, and no more"
    asked = [row for row in fleet.saves() if row[3] != "-" and row[1] == "saved"]
    assert asked, "a checkpoint was asked for and made"
    assert asked[0][2] < second[0].step <= first[-1].step + 1
    assert first[-1].step - second[0].step + 1 <= INTERVAL, "no more done again than lies between two saves"
    for run in (first, second):
        assert [step.step for step in run] == list(range(run[0].step, run[-1].step + 1))
    assert all(step.sum == step.step * (step.step + 1) // 2 for step in steps), "its state came with it"


def test_a_lost_gpu_under_a_job_of_slurm_is_repaired_and_its_node_returns(
    slurm: SlurmLab, folder: Path
) -> None:
    since = log_size(slurm)
    (folder / "verdicts/gn1").mkdir(parents=True)
    node = VerdictNode(folder / "verdicts/gn1")
    node.write_key(folder / "verdicts/key.pem")
    with repair_fleet(slurm, folder, verdicts=folder / "verdicts") as fleet, prolog_of(node) as prolog:
        fleet.start()
        assert fleet.cases() == [], "a fleet that is well has no case"
        times = watch(fleet)
        [case] = fleet.cases()
        assert (case["outcome"], case["playbook"]) == ("returned", "move_and_reboot"), told(fleet)
        assert [mark["step"] for mark in case["trail"]] == STEPS, case["trail"]
        assert case["jobs"] == {fleet.job: "saved"}
        takes_work_again(fleet)
        assert all(fleet.node_says(node)[1] == "" for node in ("gn2", "gn3", "gn4"))
        nothing_lost(fleet)
        assert slurm.job(fleet.job)["restart_cnt"] == 1
        assert (folder / "reboots").read_text().split() == ["gn1"]
        done = {one["kind"]: one for one in fleet.actions() if one["state"] == "done"}
        assert set(done) == {"checkpoint", *EFFECTS}
        assert all(gate["passed"] for one in done.values() for gate in one["gates"])
        journal = [row["what"] for row in fleet.get(f"incidents/{case['incident']}")["journal"]]
        assert {"case_opened", "case_ended"} <= set(journal), journal
        assert fleet.get("remediation")["nodes_held"] == []
    print(times)
    drains = changes(fleet, since, "reason set to: gpuvigil: gpu_lost")
    assert len(drains) == 1 and case["incident"] in drains[0]
    assert times.returned - times.passed >= 15, "the clean wait was waited"
    refused = [at_s - fleet.fault_ns / 1e9 for at_s, said in prolog if said]
    assert refused and times.held < refused[0] and refused[-1] < times.returned, (
        "it refuses while held, no longer"
    )
    words = {said for _, said in prolog if said}
    assert len(words) == 1 and f"refuses work on gn1 (action {case['id']}-" in words.pop()
    assert not prolog[-1][1] and node.counts()["missing"] > 0


@contextlib.contextmanager
def prolog_of(node: VerdictNode) -> Iterator[list[tuple[float, str]]]:
    """Run the shipped script as slurmd would, twice a second: (epoch s, what it refused with, "" for not)."""
    said: list[tuple[float, str]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            began = time.time()
            done = node.run()
            assert (done.returncode == 1) == bool(done.stderr), done
            said.append((began, done.stderr))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield said
    finally:
        over.set()
        asking.join(30)


@pytest.mark.parametrize("turn", [1])
def test_r3_a_collector_killed_in_the_midst_of_a_repair_ends_it_and_repeats_nothing(
    slurm: SlurmLab, folder: Path, turn: int
) -> None:
    """Killed as one of the first ten transitions is on disk; GPUVIGIL_SEED draws it (4: a hold intended)."""
    seed = os.environ.get("GPUVIGIL_SEED", "4")
    number = random.Random(f"{seed}/{turn}").randrange(1, 11)
    since = log_size(slurm)
    with repair_fleet(slurm, folder, restore_grace_s=30) as fleet:
        at = kill_at(fleet, number)
        print(f"seed {seed}: killed at transition {number}, {at}")
        [case] = fleet.cases()
        assert case["outcome"] == "returned", told(fleet)
        takes_work_again(fleet)
        assert all(fleet.node_says(node)[1] == "" for node in ("gn2", "gn3", "gn4"))
        assert slurm.job(fleet.job)["restart_cnt"] == 1, "requeued once"
        assert repeated(fleet) == ""
        nothing_lost(fleet)
    assert len(changes(fleet, since, "reason set to: gpuvigil: gpu_lost")) == 1, "drained once"
