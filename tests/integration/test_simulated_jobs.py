"""One collector, three simulated nodes, a job a fault: each is told with class and culprit, nothing else.

Everything below the scenario file is the product: ranks are processes that register with the real hook,
agents read their rings, the collector judges and its API answers.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration import stack

NODES = [f"lab-{number:02d}" for number in range(3)]
JOB = """
[[job]]
name = "{name}"
nodes = [0, 1, 2]
ranks_per_node = 1
first_gpu = {gpu}
begin = "15s"
step = "400ms"
checkpoint_every = 0
"""
# job -> its fault; one GPU of each node is a job's, in this order
FAULTS = {
    "hung": 'kind = "rank_hang"\njob = "hung"\nrank = 1\nat = "48s"',
    "device": 'kind = "rank_hang_device"\njob = "device"\nrank = 0\nat = "49s"',
    "killed": 'kind = "rank_killed"\njob = "killed"\nrank = 2\nat = "50s"',
    "hot": 'kind = "thermal_throttle"\nnode = 1\ngpu = 3\nresistance_factor = 2.6\nat = "44s"',
    "lost": 'kind = "gpu_lost_xid79"\nnode = 2\ngpu = 4\nat = "56s"',
    "crowded": 'kind = "congestion"\njob = "crowded"\nat = "46s"',
    "uneven": 'kind = "workload_imbalance"\njob = "uneven"\nrank = 2\nat = "47s"',
    "broken": 'kind = "loss_nan"\njob = "broken"\nat = "52s"',
    "well": "",
}
LAST_S = 100  # after the start: the latest limit is over


@contextlib.contextmanager
def fleet(folder: Path) -> Iterator[tuple[int, int]]:
    """Run collector and nodes; yield the API's port and the scenario's time zero."""
    text = "version = 1\n" + "".join(JOB.format(name=name, gpu=gpu) for gpu, name in enumerate(FAULTS))
    text += "".join(f"\n[[fault]]\n{fault}\n" for fault in FAULTS.values() if fault)
    scenario = folder / "scenario.toml"
    scenario.write_text(text)
    grpc, web = stack.free_port(), stack.free_port()
    with contextlib.ExitStack() as running:
        running.enter_context(stack.collector(folder, grpc, web))
        stack.wait_for(lambda: get(web, "health"), 30, "the collector's API")
        start_ns = time.time_ns()
        for place, node in enumerate(NODES):
            simulate = (
                f'gpus = {len(FAULTS)}\nscenario = "{scenario}"\nstart_ns = {start_ns}\n'
                f'truth_file = "{folder}/{node}.truth"'
            )
            socket = str(folder / f"hook-{place}.sock")
            running.enter_context(stack.agent(folder, node, grpc, stack.free_port(), simulate, hook=socket))
        yield web, start_ns


def get(web: int, path: str) -> dict:
    return json.loads(stack.fetch(f"http://127.0.0.1:{web}/api/v1/{path}"))


def truth(folder: Path) -> dict[str, dict]:
    """What was set, by the kind of fault."""
    lines = [line for file in folder.glob("*.truth") for line in file.read_text().splitlines()]
    return {row["fault"]: row for row in map(json.loads, lines)}


def ran_well(web: int) -> None:
    """Every job has its three ranks on three nodes, on the same step and at the step's pace."""
    jobs = {row["job"]: row for row in get(web, "jobs")["items"]}
    assert set(jobs) == set(FAULTS)
    for row in jobs.values():
        assert (row["ranks_up"], row["ranks"], sorted(row["nodes"])) == (3, 3, NODES)
        assert 0.38 < row["step_seconds"] < 0.45 and row["loss"] > 2
    steps = [row["step"] for row in jobs.values()]
    assert max(steps) - min(steps) <= 8, "all began at one time"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_fault_of_a_loop_is_told_by_class_and_culprit_and_nothing_else(tmp_path: Path) -> None:
    with fleet(tmp_path) as (web, start_ns):
        stack.wait_for(lambda: len(get(web, "jobs")["items"]) == len(FAULTS), 40, "the jobs")
        time.sleep(max(0.0, start_ns / 1e9 + 40 - time.time()))
        ran_well(web)
        assert get(web, "incidents?state=all")["items"] == [], "a job that runs well alarms nobody"
        time.sleep(max(0.0, start_ns / 1e9 + LAST_S - time.time()))
        items = get(web, "incidents?state=all")["items"]
        jobs = {row["job"]: row for row in get(web, "jobs")["items"]}
    set_ = truth(tmp_path)
    assert len(set_) == len(FAULTS) - 1
    heard = {kind: row for kind, row in set_.items() if not row.get("silent")}
    found = {(row["class"], row["target"]): row for row in items if not row.get("merged_into")}
    assert set(found) == {(row["class"], row["target"]) for row in heard.values()}, [
        (row["class"], row["target"], row["cause"]) for row in items
    ]
    for row in heard.values():
        opened_ns = found[row["class"], row["target"]]["opened_ns"]
        assert 0 <= opened_ns - row["injected_ns"] <= row["limit_s"] * 1e9 * 1.5, row["fault"]
    assert "rank 0 has not completed " in found["hang", "lab-00/rank:device/0"]["cause"]
    assert "for 1.35 times their tokens" in found["workload_imbalance", "lab-00/job:uneven"]["cause"]
    assert jobs["well"]["ranks_up"] == 3 and jobs["lost"]["ranks_up"] == 0, "its peers aborted"
    assert jobs["crowded"]["step_seconds"] > 0.5, "it was slow, and nobody's fault"
