"""The demo that the README promises, whole: 16 nodes, its own scenario, a seed that nobody chose."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from integration import stack


def seed_of_this_commit() -> int:
    """Derive the seed from the commit; a source tree without git plays seed 1."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=stack.ROOT, capture_output=True, text=True)
    return int(done.stdout[:8], 16) if done.returncode == 0 else 1


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_every_fault_is_found_and_nothing_else_is_alarmed() -> None:
    seed = seed_of_this_commit()
    done = subprocess.run(
        [sys.executable, "-m", "gpuvigil.cli", "demo", "--json", "--seed", str(seed)],
        env=stack.environment(), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stderr[-6000:]}"
    outcome = json.loads(done.stdout)
    assert (outcome["nodes"], outcome["gpus"], outcome["false_alarms"]) == (16, 8, 0)
    assert len(outcome["faults"]) == 14
    assert all(fault["correct"] for fault in outcome["faults"])
    assert outcome["seconds"] < 180
    repair = outcome["repair"]
    assert repair["returned"], repair
    stages = [stage["stage"] for stage in repair["stages"]]
    assert stages == ["found", "checkpoint", "hold", "move_job", "validate", "validate", "release"]
    seconds = [stage["seconds"] for stage in repair["stages"]]
    assert seconds == sorted(seconds)
    resumed = repair["resumed"]
    assert resumed["step"] - resumed["checkpoint_step"] >= 0
