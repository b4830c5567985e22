"""The truth file: each fault once, from the process that feels it, at the instant it is set."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate.truth import Truth, line
from gpuvigil_agent.simulate.world import World

DEADLINE_SECONDS = 10.0
SCENARIO = """
version = 1
[[fault]]
kind = "nvlink_down"
node = 3
gpu = 1
link = 4
at = "300ms"
duration = "60s"
[[fault]]
kind = "nic_down"
node = 3
interface = "ib2"
at = "200ms"
[[fault]]
kind = "driver_hang"
node = 3
at = "100ms"
[[fault]]
kind = "xid_application_storm"
node = 4
at = "100ms"
[[fault]]
kind = "driver_crash"
node = 5
at = "0s"
"""


def world(tmp_path: Path, node: str = "sim-03", start_ns: int = 0) -> World:
    """A node of the scenario above, which starts now."""
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    settings = Simulate(
        scenario=str(file), truth_file=str(tmp_path / "truth.jsonl"), start_ns=start_ns or time.time_ns()
    )
    return World(settings, node)


def rows(tmp_path: Path, count: int) -> list[dict[str, Any]]:
    """The truth file's lines, as soon as there are so many."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        file = tmp_path / "truth.jsonl"
        found = file.read_text().splitlines() if file.exists() else []
        if len(found) >= count:
            return [json.loads(text) for text in found]
        time.sleep(0.02)
    raise AssertionError(f"fewer than {count} lines in {DEADLINE_SECONDS} s")


def test_each_process_writes_its_own_part_at_the_instant(tmp_path: Path) -> None:
    """Two from the driver process, one from the host's, none before its time."""
    here = world(tmp_path)
    Truth(here, "driver").start()
    Truth(here, "host").start()
    for count in (1, 2, 3):
        last = rows(tmp_path, count)[-1]
        assert last["injected_ns"] <= time.time_ns()
    found = {row["fault"]: row for row in rows(tmp_path, 3)}
    assert found["driver_hang"]["target"] == "sim-03/node"
    assert found["nic_down"]["target"] == "sim-03/interface:ib2"
    down = found["nvlink_down"]
    assert (down["class"], down["target"], down["link"]) == ("nvlink_down", f"sim-03/gpu:{here.uuid(1)}", 4)
    assert down["injected_ns"] == here.start_ns + 300_000_000
    assert down["cleared_ns"] == down["injected_ns"] + 60_000_000_000
    assert "cleared_ns" not in found["nic_down"]


def test_a_restarted_process_writes_only_what_is_missing(tmp_path: Path) -> None:
    """What the file has is not written again; what was set while nobody ran is."""
    first = world(tmp_path, start_ns=time.time_ns() - 10**9)
    file = tmp_path / "truth.jsonl"
    hang = next(placed for placed in first.faults if placed.fault.kind == "driver_hang")
    file.write_text(json.dumps(line(first, hang)) + "\n")
    Truth(first, "driver").start()
    assert [row["fault"] for row in rows(tmp_path, 2)] == ["driver_hang", "nvlink_down"]


def test_a_crash_that_nobody_suffered_is_no_truth(tmp_path: Path) -> None:
    """A process that starts after the crash's time is left alone, and so is the file."""
    late = world(tmp_path, "sim-05", time.time_ns() - 10**9)
    truth = Truth(late, "driver")
    truth._run()
    assert not (tmp_path / "truth.jsonl").exists()


@pytest.mark.parametrize(
    ("node", "silent"), [("sim-03", [False] * 3), ("sim-04", [True]), ("sim-05", [False])]
)
def test_what_is_nobodys_fault_is_marked(node: str, silent: list[bool], tmp_path: Path) -> None:
    """Only the storm must stay silent."""
    here = world(tmp_path, node)
    assert [line(here, placed).get("silent", False) for placed in here.faults] == silent
