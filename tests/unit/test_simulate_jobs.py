"""Simulated jobs: every node sees the same steps; each fault does to them what it would to a real loop."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuvigil import collectives
from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate.job_collectives import Recorder
from gpuvigil_agent.simulate.job_effects import NEVER, Effects
from gpuvigil_agent.simulate.job_steps import START_S, Step, Steps
from gpuvigil_agent.simulate.scenario import parse_scenario
from gpuvigil_agent.simulate.truth import target
from gpuvigil_agent.simulate.world import World
from gpuvigil_protos.settings import ConfigError

START_NS = 1_800_000_000_000_000_000
JOB = '[[job]]\nname = "llm"\nnodes = [0, 1, 2]\nranks_per_node = 2\nstep = "500ms"\n'


def world(folder: Path, fault: str = "", job: str = JOB, node: str = "sim-00", **more: object) -> World:
    text = f"version = 1\n{job}" + (f"[[fault]]\n{fault}\n" if fault else "")
    file = folder / "s.toml"
    file.write_text(text)
    return World(Simulate(scenario=str(file), start_ns=START_NS, **more), node)  # type: ignore[arg-type]


def steps_of(here: World, count: int = 400) -> list[Step]:
    """The job's first steps as this node computes them."""
    effects = Effects(here.config, here.jobs[0], here.node)
    return list(itertools.islice(Steps(here.jobs[0], effects, here.config.seed, here.start_ns), count))


def pace(steps: list[Step], since_s: float, until_s: float) -> float:
    """Mean seconds from one exchange's end to the next in a part of the run."""
    ends = [s.done for s in steps if since_s <= (s.done - START_NS) / 1e9 < until_s and not s.saved]
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(ends)]
    return sorted(gaps)[len(gaps) // 2]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), fault=st.sampled_from(["rank_slow", "congestion", "workload_imbalance"]))
def test_every_node_sees_the_same_steps(tmp_path_factory, seed: int, fault: str) -> None:
    folder = tmp_path_factory.mktemp("s")
    told = f'kind = "{fault}"\njob = "llm"\nat = "9s"'
    seen = [steps_of(world(folder, told, node=f"sim-{n:02d}", seed=seed), 40) for n in range(3)]
    assert seen[0] == seen[1] == seen[2]


def test_a_step_lasts_as_long_as_its_slowest_rank_and_the_exchange(tmp_path: Path) -> None:
    steps = steps_of(world(tmp_path))
    assert steps[0].begin == [START_NS + START_S * 10**9] * 6
    for one, after in itertools.pairwise(steps):
        assert one.done > max(one.arrive) and all(end > one.done for end in one.end)
        assert all(a < b < c for a, b, c in zip(one.begin, one.data, one.forward, strict=True))
        assert after.begin == [one.left(rank) for rank in range(6)]
    assert 0.49 < pace(steps, 5, 100) < 0.53
    assert [one.number for one in steps if one.saved] == list(range(49, 400, 50))


@pytest.mark.parametrize(
    ("fault", "low", "high"),
    [
        ('kind = "rank_slow"\njob = "llm"\nrank = 3\nfactor = 1.5', 1.3, 1.5),
        ('kind = "workload_imbalance"\njob = "llm"\nfactor = 1.5', 1.3, 1.5),
        ('kind = "congestion"\njob = "llm"\nfactor = 3.0', 1.25, 1.4),
        ('kind = "data_stall"\njob = "llm"\nwait = "250ms"', 1.4, 1.6),
        ('kind = "power_brake"\nnode = 1\ngpu = 1', 1.3, 2.0),
        ('kind = "pcie_downgrade"\nnode = 1\ngpu = 0', 2.0, 4.0),
        ('kind = "pcie_downgrade"\nnode = 1\ngpu = 0\ngeneration = 4', 1.02, 1.3),
        ('kind = "nvlink_errors"\nnode = 1\ngpu = 0', 0.99, 1.02),
        ('kind = "nvlink_errors"\nnode = 1\ngpu = 0\nerrors_per_second = 8000.0', 1.1, 1.4),
        ('kind = "nvlink_down"\nnode = 1\ngpu = 0\nxid = false', 1.0, 1.04),
        ('kind = "disk_slow"\nnode = 1', 1.4, 2.0),
        ('kind = "nic_flap"\nnode = 1\ninterface = "ib1"', 1.0, 3.0),
        ('kind = "pcie_downgrade"\nnode = 1\ngpu = 5', 0.99, 1.01),
        ('kind = "nic_down"\nnode = 1\ninterface = "ib5"', 0.99, 1.01),
        ('kind = "xid_application_storm"\nnode = 1', 0.99, 1.01),
    ],
)
def test_what_makes_a_step_longer_and_what_does_not(
    tmp_path: Path, fault: str, low: float, high: float
) -> None:
    steps = steps_of(world(tmp_path, f'{fault}\nat = "60s"\nduration = "60s"'), 600)
    usual = pace(steps, 10, 60)
    assert low < pace(steps, 65, 120) / usual < high
    assert 0.98 < pace(steps, 128, 180) / usual < 1.02, "it ends with the fault"


def test_heat_slows_the_job_through_its_clock(tmp_path: Path) -> None:
    fault = 'kind = "thermal_throttle"\nnode = 1\ngpu = 1\nresistance_factor = 3.0\nat = "40s"'
    steps = steps_of(world(tmp_path, fault))
    assert pace(steps, 80, 140) > 1.1 * pace(steps, 10, 40)
    late = [step for step in steps if step.done > START_NS + 90 * 10**9 and not step.saved]
    own = [max(range(6), key=lambda rank: step.arrive[rank] - step.begin[rank]) for step in late]
    assert own.count(3) > 0.8 * len(own), "the rank on that GPU is the late one"


@pytest.mark.parametrize(
    ("fault", "ends", "others"),
    [
        ('kind = "rank_hang"\njob = "llm"\nrank = 3', {3: "killed"}, "aborted"),
        ('kind = "rank_hang_device"\njob = "llm"\nrank = 3', {}, "aborted"),
        ('kind = "rank_killed"\njob = "llm"\nrank = 3', {3: "killed"}, "aborted"),
        ('kind = "gpu_lost_silent"\nnode = 1\ngpu = 1', {3: "error"}, "aborted"),
        ('kind = "ecc_uncorrectable"\nnode = 1\ngpu = 1', {3: "error"}, "aborted"),
        ('kind = "nic_down"\nnode = 1\ninterface = "ib1"', {3: "error"}, "aborted"),
        ('kind = "driver_hang"\nnode = 1\ngpu = 1', {3: "killed"}, "aborted"),
        ('kind = "driver_unload"\nnode = 1', {2: "killed", 3: "killed"}, "aborted"),
        ('kind = "data_stall"\njob = "llm"\nrank = 3', {3: "killed"}, "aborted"),
        ('kind = "checkpoint_stall"\njob = "llm"', {}, "aborted"),
        ('kind = "nvlink_down"\nnode = 1\ngpu = 1', {}, "aborted"),
    ],
)
def test_what_ends_a_job(tmp_path: Path, fault: str, ends: dict[int, str], others: str) -> None:
    steps = steps_of(world(tmp_path, f'{fault}\nat = "30s"'), 200)
    last = steps[-1]
    assert last.halted and not any(step.halted for step in steps[:-1])
    how = {rank: death.how for rank, death in last.deaths.items()}
    assert how == dict.fromkeys(range(6), others) | ends
    first = min(last.deaths.values())
    assert (first.time_ns - START_NS) / 1e9 >= 30
    if ends and "hang" not in fault and "stall" not in fault:
        assert last.deaths[3].time_ns <= first.time_ns + 10**9, "the culprit goes first"
    quick = "killed" in fault or "lost" in fault or "ecc" in fault
    assert not quick or max(d.time_ns for d in last.deaths.values()) < START_NS + 40 * 10**9


def test_nobody_aborts_who_waits_in_no_collective(tmp_path: Path) -> None:
    last = steps_of(world(tmp_path, 'kind = "data_stall"\njob = "llm"\nat = "30s"'))[-1]
    assert last.data == [NEVER] * 6 and all(death.time_ns == NEVER for death in last.deaths.values())


def test_a_hang_that_ends_lets_the_job_go_on(tmp_path: Path) -> None:
    fault = 'kind = "rank_hang"\njob = "llm"\nrank = 3\nat = "30s"\nduration = "20s"'
    steps = steps_of(world(tmp_path, fault))
    gaps = [(b.done - a.done) / 1e9 for a, b in itertools.pairwise(steps)]
    assert not steps[-1].halted and 19 < max(gaps) < 23 and sum(gap > 3 for gap in gaps) == 1


def test_losses_and_tokens(tmp_path: Path) -> None:
    nan = steps_of(world(tmp_path, 'kind = "loss_nan"\njob = "llm"\nat = "30s"'), 100)
    assert nan[0].loss == 1.0 and math.isnan(nan[-1].loss)
    more = steps_of(world(tmp_path, 'kind = "workload_imbalance"\njob = "llm"\nrank = 4\nat = "30s"'), 100)
    assert more[-1].work == [1.0, 1.0, 1.0, 1.0, 1.35, 1.0]


@pytest.mark.parametrize(
    ("fault", "places"),
    [
        ('kind = "rank_hang"\njob = "llm"\nrank = 3', {0: (4, 1, 0), 3: (0, 0, 0)}),
        ('kind = "rank_hang_device"\njob = "llm"\nrank = 3', {0: (4, 2, 1), 3: (4, 1, 0)}),
        ('kind = "rank_hang_device"\njob = "llm"\nrank = 3\nstage = "launch"', {0: (4, 1, 0), 3: (4, 0, 0)}),
    ],
)
def test_the_hook_reads_how_far_each_rank_came(tmp_path: Path, fault: str, places, monkeypatch) -> None:
    last = steps_of(world(tmp_path, f'{fault}\nat = "30s"'))[-1]
    for rank, (enqueued, started, completed) in places.items():
        recorder = Recorder(rank)
        recorder.step, recorder.arrived = last, last.arrive[rank] < NEVER
        for name in ("torch.distributed.distributed_c10d", "torch._C._distributed_c10d"):
            monkeypatch.setitem(__import__("sys").modules, name, None)
        recorder.install(6)
        [row] = collectives.progress()
        before = 4 * last.number
        assert row == {
            "group": "0", "ranks": "0-5", "enqueued": before + enqueued, "started": before + started,
            "completed": before + completed,
        }  # fmt: skip
        entries = json.loads(recorder.dump(includeCollectives=True))["entries"]
        states = [entry["state"] for entry in entries if entry["collective_seq_id"] > before]
        scheduled, begun = enqueued - started, started - completed
        assert states == ["completed"] * completed + ["started"] * begun + ["scheduled"] * scheduled


@pytest.mark.parametrize(
    ("fault", "node", "expected"),
    [
        ('kind = "rank_hang"\njob = "llm"\nrank = 5', "sim-02", "sim-02/rank:llm/5"),
        ('kind = "congestion"\njob = "llm"', "sim-00", "sim-00/job:llm"),
        ('kind = "workload_imbalance"\njob = "llm"\nrank = 5', "sim-02", "sim-00/job:llm"),
    ],
)
def test_the_truth_names_rank_or_job(tmp_path: Path, fault: str, node: str, expected: str) -> None:
    for name in ("sim-00", "sim-01", "sim-02"):
        here = world(tmp_path, f'{fault}\nat = "30s"', node=name)
        assert [target(here, placed) for placed in here.faults] == ([expected] if name == node else [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (JOB.replace('"llm"', '"a b"'), ("job 1", "name", "letters")),
        (JOB.replace("[0, 1, 2]", "[0, 0]"), ("nodes", "once")),
        (JOB.replace("[0, 1, 2]", "[]"), ("job 1", "nodes")),
        (JOB.replace("[0, 1, 2]", "[-1]"), ("nodes", "-1")),
        (JOB.replace('"500ms"', '"1ms"'), ("step", "at least")),
        (JOB.replace("step", "pace"), ('unknown key "pace"',)),
        (JOB + JOB, ("name", "no other job")),
        (JOB + JOB.replace("llm", "vit"), ("first_gpu", "job llm")),
        ("job = 3\n", ("job", "array")),
        ("job = [3]\n", ("job 1", "expected a table")),
        (JOB + '[[fault]]\nkind = "loss_nan"\njob = "lm"\nat = "1s"', ("job", "llm", "'lm'")),
        (JOB + '[[fault]]\nkind = "loss_nan"\nat = "1s"', ("missing", "job")),
        (JOB + '[[fault]]\nkind = "rank_hang"\njob = "llm"\nrank = 6\nat = "1s"', ("rank", "less than 6")),
        (JOB + '[[fault]]\nkind = "rank_hang"\njob = "llm"\nrank = 1\nnode = 2\nat = "1s"', ("node", "0")),
        (JOB + 'duration = "9s"\n[[fault]]\nkind = "loss_nan"\njob = "llm"\nat = "9s"', ("at", "while")),
        (JOB + '[[fault]]\nkind = "congestion"\njob = "llm"\nfactor = 0.0\nat = "1s"', ("factor",)),
    ],
)
def test_a_wrong_job_is_refused_with_the_reason(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario(f"version = 1\n{text}", "x")
    for word in words:
        assert word in str(caught.value)


def test_a_node_without_the_jobs_gpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks_per_node: expected GPUs below 1 on node sim-00, got GPU 1"):
        world(tmp_path, gpus=1)
    assert world(tmp_path, node="sim-07", gpus=1).jobs == ()
