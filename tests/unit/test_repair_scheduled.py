"""What a scheduler tells, laid over what agents and ranks tell: names, pods, deaths, pauses, who goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.incident_help import finding, gpu, node
from unit.repair_world import CLEAN_S, Memory, World
from unit.safety_world import ask, held, judge, with_job

from gpuvigil_collector.action import Action, FleetState, JobState, NodeState
from gpuvigil_collector.actuators.tools import names
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.fleet import SchedulerView, Sources, joined_jobs, with_fleet
from gpuvigil_collector.repair.marks import Marks
from gpuvigil_collector.repair.schedulers import pods_of, with_kubernetes
from gpuvigil_collector.repair.stage import RepairView
from gpuvigil_collector.web.repair_rows import state_of
from gpuvigil_detectors.training.jobs import Job, Rank

UIDS = ("1f0c5d3e-7a1b-4c8d-9e2f-0123456789ab", "2f0c5d3e-7a1b-4c8d-9e2f-0123456789ab")
PODS = pods_of({"team/Job/llama": tuple(("team", f"llama-{i}", uid, "n0") for i, uid in enumerate(UIDS))})
WORKLOADS = [
    "team/Job/llama-7b", "team/Job.batch.volcano.sh/x", "team/LeaderWorkerSet/serve/3", "t/Pod/a.b-c",
]  # fmt: skip
NO_WORKLOADS = [
    "team//x", "/Job/x", "team/Job/", "team/Job/*", "*/Job/x", "team/*/x", "team/job/x", "Team/Job/x",
    "team/Job/X", "team/Job/x/", "team/Job/x/y", "team/Job/x/1/2", "team/Job/none", "none/Job/x",
    "all/Job/x",
    "team/Job/x\n", "../Job/x", "team/Job/..", "team/Job", "team/Job/-x", "a" * 64 + "/Job/x",
    "team/Job/" + "x" * 254,
]  # fmt: skip


def cgroup(uid: str) -> str:
    """A pod's control group as systemd's driver names it."""
    pod = uid.replace("-", "_")
    return f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice"


def hook_job(name: str, *workloads: str, ended: str = "") -> Job:
    ranks = {
        number: Rank(node="n0", number=number, workload=told, ended=ended, on_request="save")
        for number, told in enumerate(workloads)
    }
    return Job(name=name, world_size=len(ranks), ranks=ranks)


@pytest.mark.parametrize("job", WORKLOADS)
@pytest.mark.parametrize("kind", ["checkpoint", "move_job"])
def test_a_schedulers_job_is_a_target_by_its_whole_name(job: str, kind: str) -> None:
    verdict = judge(held(with_job(job), "n0"), ask(kind, job=job))
    assert next(gate for gate in verdict.gates if gate.name == "target").passed
    assert judge(with_job(job), ask(kind, job=job.rpartition("/")[2])).gate == "target"


@pytest.mark.parametrize("job", NO_WORKLOADS, ids=ascii)
def test_r13_what_is_not_one_whole_workload_is_refused(job: str) -> None:
    assert judge(held(with_job(job), "n0"), ask("move_job", job=job)).gate == "target"


@pytest.mark.parametrize("job", [*WORKLOADS, "team/Job/" + "x" * 240, "team/Job/" + "x" * 239 + "y"])
def test_the_action_of_a_schedulers_job_has_a_plain_name_of_its_own(job: str) -> None:
    case = Case(
        id="e3d9491c", incident="7ddb1ed3", fingerprint="f", fault_class="gpu_lost", node="n0", target="t",
        cause="c", playbook="p", opened_ns=1,
    )  # fmt: skip
    name = case.action_id("move_job", job)
    assert names(Action(proposal=ask("move_job", id=name, job=job), state="intended"))["id"] == name
    assert "/" not in name and name != case.action_id("move_job", f"{job}0")


@pytest.mark.parametrize("place", [cgroup, lambda uid: f"/kubepods/burstable/pod{uid}"])
def test_a_job_whose_ranks_are_in_the_pods_of_one_job_is_that_job(place) -> None:
    both = hook_job("llama", *map(place, UIDS))
    assert joined_jobs({"llama": both}, PODS) == {"llama": "team/Job/llama"}
    assert joined_jobs({"llama": hook_job("llama", *map(place, UIDS), ended="exit")}, PODS)
    elsewhere = hook_job("llama", place(UIDS[0]), place(UIDS[1].replace("2f", "3f")))
    for apart in (elsewhere, hook_job("llama", "/user.slice"), hook_job("llama", ""), hook_job("llama")):
        assert joined_jobs({"llama": apart}, PODS) == {}
    second = hook_job("eval", place(UIDS[1]))
    assert joined_jobs({"llama": hook_job("llama", place(UIDS[0])), "eval": second}, PODS) == {}
    assert joined_jobs({"llama": both}, {}) == {}


def view(**more: object) -> SchedulerView:
    nodes = {"n0": NodeState(node="n0", gpus=8, partition="h100", jobs=("team/Job/llama",))}
    jobs = {"team/Job/llama": JobState(job="team/Job/llama", nodes=("n0",), gpus=8)}
    given = {"at_ns": 1, "adds": lambda state: with_kubernetes(nodes, state), "jobs": jobs, "pods": PODS}
    return SchedulerView(**(given | more))


def seen(told: SchedulerView | None, jobs: dict[str, Job]) -> FleetState:
    sources = Sources(nodes={"n0": node("n0")}, jobs=jobs, view=told, scheduled=True, cases=(), marks=Marks())
    return with_fleet(FleetState(mode="act", paused=""), sources, 2)


def test_a_joined_job_is_one_and_is_asked_by_its_own_name() -> None:
    state = seen(view(), {"llama": hook_job("llama", *map(cgroup, UIDS))})
    assert set(state.jobs) == {"team/Job/llama"} and state.nodes["n0"].jobs == ("team/Job/llama",)
    assert state.jobs["team/Job/llama"].processes == "llama"
    apart = seen(view(pods={}), {"llama": hook_job("llama", *map(cgroup, UIDS))})
    assert set(apart.jobs) == {"llama", "team/Job/llama"} and apart.jobs["team/Job/llama"].processes == ""


def test_r10_a_pause_made_in_the_scheduler_is_ours_too() -> None:
    assert seen(view(paused="firmware week"), {}).paused == "firmware week"
    assert seen(view(), {}).paused == ""
    assert seen(None, {}).nodes is None


def test_a_node_is_dead_when_agent_and_kubelet_are_both_silent() -> None:
    told = {"n0": NodeState(node="n0", gpus=8, dead=True)}
    assert with_kubernetes(told, NodeState(node="n0", gpus=8, silent=True)).dead
    assert not with_kubernetes(told, NodeState(node="n0", gpus=8)).dead
    alive = {"n0": NodeState(node="n0", gpus=8)}
    assert not with_kubernetes(alive, NodeState(node="n0", gpus=8, silent=True)).dead


def test_a_checkpoint_is_asked_of_the_processes_by_their_own_name() -> None:
    world = World(Memory())
    world.jobs = {"team/Job/llama": JobState(job="team/Job/llama", nodes=("n1",), gpus=8, processes="llama")}
    world.fault("gpu_lost")
    world.tick(8)
    assert world.saves.asked == ["llama"]
    assert ("move_job", "team/Job/llama") in world.effects.asked


def test_a_job_that_nobody_may_stop_holds_up_no_other() -> None:
    world = World()
    refused = JobState(job="a-bare-pod", nodes=("n1",), gpus=1, refusals=("bare_pod",))
    world.jobs = {"a-bare-pod": refused, **world.jobs}
    world.fault("gpu_lost")
    world.tick(8)
    moved = [target for kind, target in world.effects.asked if kind == "move_job"]
    assert moved[0] == "j1"  # by name it would be the second


def test_a_fault_that_shows_again_under_its_old_incident_is_treated_again() -> None:
    world = World()
    world.fault("gpu_lost")
    shows(world)
    world.tick(8)
    gone = world.open.pop("i1")  # the test has ended the report
    world.tick(int(CLEAN_S) + 20)
    assert world.case.outcome == "returned" and len(world.desk.kept.cases) == 1
    world.open["i1"] = gone  # the same incident, reopened for another reason that policy leaves alone
    world.tick(60)
    assert len(world.desk.kept.cases) == 1
    again = World(world.records)
    again.now_ns, again.open = world.now_ns, dict(world.open)
    shows(again)
    again.tick(3)
    assert len(again.desk.kept.cases) == 2 and again.kinds[0] == "hold"
    returned = RepairView(cases=tuple(world.desk.kept.cases.values()), marks=world.desk.kept.marks)
    assert [state_of(one.open["i1"], returned) for one in (world, again)] == ["open", "relapsed"]


def shows(world: World) -> None:
    """The fault of the open incident shows now."""
    seen_ns = world.now_ns
    lost = replace(finding("gpu_lost", gpu("n1")), start_ns=seen_ns, end_ns=seen_ns)
    world.open["i1"] = replace(world.open["i1"], findings=(lost,), seen_ns=seen_ns)
