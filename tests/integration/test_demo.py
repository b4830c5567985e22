"""The demo as a user runs it: real processes, a short scenario, Ctrl-C, a murdered child. Nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT / name) for name in ("agent", "collector", "detectors", "protos")]
# facts need no warm-up, so that this scenario may be quicker than the demo's own
SCENARIO = """
version = 1
[[fault]]
kind = "gpu_lost_xid79"
node = 0
at = "12s"
gpu = 1
[[fault]]
kind = "gpu_lost_silent"
node = 1
at = "14s"
gpu = 0
"""


class Demo:
    """A running `gpuvigil demo` with its own temporary directory."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        scenario = folder / "scenario.toml"
        scenario.write_text(SCENARIO)
        self.errors = folder / "stderr"
        roots = os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "TMPDIR": str(self.scratch),
            "PYTHONPATH": roots,
            "SCENARIO_HINT": "secret",
        }
        command = [sys.executable, "-m", "gpuvigil.cli", "demo", "--nodes", "2", "--gpus", "2"]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--scenario", str(scenario), "--json", *arguments],
                stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Wait until the demo has said these words."""
        deadline = time.monotonic() + seconds
        while words not in self.errors.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """All processes that the demo has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for the end; return exit status and standard output."""
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out.decode()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.communicate(timeout=30)


def assert_nothing_is_left(demo: Demo, family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert list(demo.scratch.glob("gpuvigil-*")) == []


@pytest.mark.slow
def test_it_finds_what_was_broken_and_says_so_in_one_object(demo: Demo) -> None:
    demo.wait_for("are connected")
    family = demo.family()
    assert_collector_knows_nothing(family)
    code, out = demo.end(120)
    result = json.loads(out)
    said = demo.errors.read_text()
    assert code == 0, said
    assert set(result) == {"faults", "false_alarms", "nodes", "gpus", "seconds"}
    assert (result["false_alarms"], result["nodes"], result["gpus"]) == (0, 2, 2)
    assert [fault["fault"] for fault in result["faults"]] == ["gpu_lost_xid79", "gpu_lost_silent"]
    for fault in result["faults"]:
        assert fault["correct"] is True
        assert (fault["found_class"], fault["found_target"]) == ("gpu_lost", fault["target"])
        assert 0 <= fault["found_ns"] - fault["injected_ns"] <= 15e9
    assert "the first fault comes in" in said
    assert_nothing_is_left(demo, family)


def assert_collector_knows_nothing(family: list[psutil.Process]) -> None:
    """Neither argument, environment, directory nor open file leads to scenario or truth."""
    ours = [p for p in family if "gpuvigil_collector" in " ".join(p.cmdline())]
    assert len(ours) >= 2, "brain and at least one ingest worker"
    for process in ours:
        words = [*process.cmdline(), *(f"{k}={v}" for k, v in process.environ().items()), process.cwd()]
        words += [file.path for file in process.open_files()]
        for banned in ("scenario", "SCENARIO_HINT", "truth", "fleet"):
            assert not [word for word in words if banned in word]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing(demo: Demo, how: signal.Signals) -> None:
    demo.wait_for("collector answers")
    family = demo.family()
    demo.process.send_signal(how)
    code, out = demo.end()
    assert (code, out) == (130, "")
    assert "Traceback" not in demo.errors.read_text()
    assert_nothing_is_left(demo, family)


@pytest.mark.slow
def test_a_child_that_dies_ends_the_demo_with_its_name(demo: Demo) -> None:
    demo.wait_for("are connected")
    family = demo.family()
    victim = next(p for p in family if "sim-01" in " ".join(p.cmdline()) and "gpuvigil_agent" in p.cmdline())
    victim.kill()
    code, out = demo.end()
    assert (code, out) == (2, "")
    assert "agent sim-01 ended by itself (killed by signal 9)" in demo.errors.read_text()
    assert_nothing_is_left(demo, family)
