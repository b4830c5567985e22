"""The demo's parts: the hand-over to the agent, the ends of processes, the table, what is told to whom."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from gpuvigil_cli.client import CliError
from gpuvigil_cli.demo.children import Children, clean_environment
from gpuvigil_cli.demo.layout import make_layout, make_scenario, truth_file, write_collector, write_node
from gpuvigil_cli.demo.match import Fault, join
from gpuvigil_cli.demo.run import read_plan
from gpuvigil_cli.demo.screen import Screen
from gpuvigil_cli.demo.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT / name) for name in ("agent", "collector", "detectors", "protos")]
CHILD = """
import signal, subprocess, sys, time
mode = open(sys.argv[2]).read()
if mode == "dies":
    print("it was\\x1b[31m the config"); sys.exit(3)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", grandchild.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(SOURCES))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "demo_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "demo_child"


def config(folder: Path, mode: str) -> Path:
    path = folder / f"{mode}.toml"
    path.write_text(mode)
    return path


def grandchild_of(log: Path) -> int:
    deadline = time.monotonic() + 20
    while "ready" not in (text := log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(text.split()[1])


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("mode", ["obedient", "stubborn"])
def test_leaving_stops_children_and_their_children(module: str, tmp_path: Path, mode: str) -> None:
    with Children(stop_seconds=0.5) as children:
        child = children.start("c", module, config(tmp_path, mode))
        grandchild = grandchild_of(child.log)
        children.check()
    assert child.process.returncode is not None
    deadline = time.monotonic() + 10
    while not gone(grandchild):
        assert time.monotonic() < deadline, "what a child started outlived the demo"
        time.sleep(0.02)


def test_a_child_that_dies_is_reported_with_its_last_lines(module: str, tmp_path: Path) -> None:
    with Children() as children:
        child = children.start("agent sim-03", module, config(tmp_path, "dies"))
        child.process.wait(20)
        with pytest.raises(CliError) as error:
            children.check()
    assert "agent sim-03 ended by itself (exit status 3)" in str(error.value)
    assert r"it was\x1b[31m the config" in str(error.value)


def test_children_get_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUVIGIL_SCENARIO", "secret")
    monkeypatch.setenv("PYTHONPATH", "agent")
    environment = clean_environment()
    assert "GPUVIGIL_SCENARIO" not in environment
    assert environment["PYTHONPATH"] == str(Path.cwd() / "agent")
    assert set(environment) <= {*os.environ}


def test_the_collector_is_told_nothing_of_scenario_or_truth() -> None:
    place = make_layout()
    try:
        scenario = place.fleet / "scenario.toml"
        text = write_collector(place).read_text()
        node = write_node(place, "sim-00", gpus=2, seed=1, start_ns=5, scenario=scenario).read_text()
        assert str(place.fleet) not in text
        assert "scenario" not in text
        assert "truth" not in text
        assert str(scenario) in node
        assert place.collector not in place.fleet.parents
        assert {path.stat().st_mode & 0o777 for path in (place.collector, place.fleet)} == {0o700}
    finally:
        place.remove()
    assert not place.collector.exists()
    assert not place.fleet.exists()


def test_a_wrong_scenario_is_refused_with_the_simulators_words(tmp_path: Path) -> None:
    place = make_layout()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('version = 1\n[[fault]]\nkind = "gpu_lost_xid97"\nnode = 0\nat = "1s"\n')
    try:
        with pytest.raises(CliError, match="gpu_lost_xid79"):
            make_scenario(place, nodes=1, gpus=1, seed=1, own=wrong)
        with pytest.raises(CliError, match="cannot be read"):
            make_scenario(place, nodes=1, gpus=1, seed=1, own=tmp_path / "none.toml")
    finally:
        place.remove()


@pytest.mark.parametrize("seed", [1, 2, 97])
def test_the_drawn_scenario_leaves_every_fault_its_time(seed: int) -> None:
    place = make_layout()
    try:
        plan = read_plan(make_scenario(place, nodes=16, gpus=8, seed=seed, own=None))
    finally:
        place.remove()
    assert plan.faults >= 5
    assert plan.first_s >= 40
    assert plan.last_s + 60 <= plan.seconds_max <= 165


@pytest.mark.parametrize("text", ["", "[[fault]]\n", '[[fault]]\nat = "soon"\n', "fault = 3\n", "=\n"])
def test_a_plan_without_onsets_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(CliError, match="scenario: expected"):
        read_plan(path)


class Api:
    """The one call that Watch makes of its client."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def items(self, _path: str, **_query: str) -> list[dict]:
        return self.rows


def test_watch_says_each_thing_once_and_waits_for_whole_lines() -> None:
    output = io.StringIO()
    api, place = Api(), make_layout()
    truth = truth_file(place, "sim-00")
    truth.parent.mkdir()
    line = json.dumps({"fault": "x", "class": "gpu_lost", "target": "sim-00/gpu:G", "injected_ns": 10**9})
    try:
        watch = Watch(place, ["sim-00", "sim-01"], api, Screen(as_json=False, console=Console(file=output)))
        truth.write_text(line[:30])
        watch.look()
        assert watch.faults == []
        truth.write_text(line + "\n")
        api.rows = [
            {
                "id": "1",
                "class": "gpu_lost",
                "target": "sim-00/gpu:G",
                "opened_ns": 2 * 10**9,
                "cause": "\x1b[2Jwhy",
            },
            {
                "id": "2",
                "class": "thermal",
                "target": "sim-01/node",
                "opened_ns": 2 * 10**9,
                "cause": "[red]x",
            },
        ]
        for _ in range(3):
            watch.look()
    finally:
        place.remove()
    said = output.getvalue()
    assert len(watch.faults) == 1
    assert (said.count("set   "), said.count("found "), said.count("alarm ")) == (1, 1, 1)
    assert "\x1b" not in said
    assert r"\x1b[2Jwhy" in said
    assert "[red]x" in said


def test_the_final_table_fits_a_narrow_terminal_and_names_misses() -> None:
    output = io.StringIO()
    target = "sim-03/gpu:GPU-5d1b2c3d-aaaa-bbbb-cccc-0123456789ab"
    fault = Fault(fault="gpu_lost_xid79", fault_class="gpu_lost", target=target, injected_ns=1)
    screen = Screen(as_json=False, console=Console(file=output, width=80))
    screen.result(join([fault], [], lambda _: 10**9), {"incidents": "http://127.0.0.1:1/" + "x" * 90})
    lines = output.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines if "http" not in line)
    assert any(line.startswith("NO") for line in lines)
    assert "0 of 1 faults judged right, 0 false alarms" in output.getvalue()
