"""The demo's repair: what collector and agents are told, what is approved and when, what its end is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpuvigil_agent import config_file
from gpuvigil_cli.demo.layout import make_layout, write_collector
from gpuvigil_cli.demo.repair import RepairAct
from gpuvigil_cli.demo.screen import Screen
from gpuvigil_cli.demo.site import AWAY_S, NODES, write_nodes
from gpuvigil_cli.demo.supervised import JOB, Supervised
from gpuvigil_collector import config, policy
from gpuvigil_protos.fault_classes import FAULT_CLASSES

SECOND = 1_000_000_000


class Api:
    """The collector's answers, as the test sets them."""

    def __init__(self) -> None:
        self.case: dict[str, Any] = {
            "node": NODES[0], "opened_ns": 1, "class": "gpu_lost", "target": "t", "trail": [],
            "action": None, "outcome": None,
        }  # fmt: skip
        self.job: dict[str, Any] = {"job": JOB, "nodes": [NODES[0]], "step": 40, "checkpoint": {"step": 39}}
        self.said: list[str] = []

    def items(self, path: str) -> list[dict[str, Any]]:
        return [self.case] if path.endswith("cases") else [self.job]

    def get(self, path: str) -> dict[str, Any]:
        return {"state": "awaiting"}

    def say(self, path: str) -> dict[str, Any]:
        self.said.append(path)
        return {}


@pytest.fixture
def act() -> Any:
    layout = make_layout()
    screen = Screen(as_json=True, console=Console(file=io.StringIO()))
    made = RepairAct(
        place=layout, screen=screen, site=Supervised(layout), onset_s=0, start_ns=time.time_ns() - SECOND
    )
    made._client, made._started = Api(), True  # type: ignore[assignment]
    yield made
    layout.remove()


def test_collector_and_agents_take_what_they_are_told() -> None:
    layout = make_layout()
    try:
        site = Supervised(layout)
        file = write_collector(layout, site.collector_tables())
        read = config.load(file, [])
        assert (read.remediation.mode, read.remediation.scheduler) == ("recommend", "supervisor")
        assert read.actuators.supervised == {JOB: list(NODES)}
        book = policy.load(Path(read.remediation.policy))
        acting = {name for name in FAULT_CLASSES if book.playbook_for(name, "critical") != "tell"}
        assert acting == {"gpu_lost"}
        assert "fleet" not in file.read_text()
        for node, written in write_nodes(layout, site, seed=1, start_ns=1, onset_s=5).items():
            agent = config_file.load(written, [])
            assert (agent.node, list(agent.supervisor.jobs)) == (node, [JOB])
            assert agent.supervisor.jobs[JOB].environment["GLOO_SOCKET_IFNAME"] == "lo"
    finally:
        layout.remove()


def test_validation_is_approved_only_once_the_gpu_is_back(act: RepairAct) -> None:
    api: Any = act._client
    api.case["action"] = "c1-2-0-hold"
    act.look()
    act.look()
    assert api.said == ["/api/v1/actions/c1-2-0-hold/approve"], "once"
    api.case["action"] = "c1-4-0-validate"
    act.look()
    assert len(api.said) == 1
    act.start_ns -= int((AWAY_S + 1) * SECOND)
    act.look()
    assert api.said[1:] == ["/api/v1/actions/c1-4-0-validate/approve"]


def test_it_is_good_only_with_every_stage_and_a_job_that_goes_on(act: RepairAct) -> None:
    api: Any = act._client
    steps = ["capture_evidence", "checkpoint", "hold", "move_job", "validate", "validate", "release"]
    marks = [
        {"time_ns": act.onset_ns + place * SECOND, "step": step, "what": f"done {place}"}
        for place, step in enumerate(steps)
    ]
    api.case["trail"] = marks[:-1]
    act.look()
    assert (act.good, act.ended) == (False, False)
    api.case |= {"trail": marks, "outcome": "returned"}
    act.look()
    assert (act.good, act.ended) == (False, False), "the job does not go on yet"
    api.job |= {"nodes": [NODES[1]], "state": "running", "step": 43}
    act.look()
    assert (act.good, act.ended) == (True, True)
    assert act.resumed["checkpoint_step"] == 39
    assert [row[0] for row in act.rows()] == [
        "found", "checkpoint", "node held", "restart elsewhere", "validate", "validate", "return"
    ]  # fmt: skip
    assert [row[1] for row in act.rows()][1:3] == ["1.0 s", "2.0 s"]


def test_a_case_that_was_handed_over_ends_the_act_badly(act: RepairAct) -> None:
    api: Any = act._client
    api.case |= {"outcome": "handed_over", "trail": [{"time_ns": 5, "step": "validate", "what": "failed: x"}]}
    act.look()
    assert (act.ended, act.good) == (True, False)
    assert act.stands() == "handed_over; last validate: failed: x"


def test_the_supervised_job_does_not_outlive_the_demo(act: RepairAct) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    environment = {**os.environ, "GPUVIGIL_SUPERVISED": f"{JOB}:abc"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"1\n"
        record = act.place.fleet / NODES[1] / "state" / "supervised" / f"{JOB}.json"
        record.parent.mkdir(parents=True)
        record.write_text(f'{{"mark": "{JOB}:abc", "pid": {child.pid}}}')
        act.site.end()
        assert child.wait(10) == -9
    finally:
        child.kill()
        child.wait(10)
