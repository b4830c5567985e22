"""Following one repair from outside: Slurm's word, the job's files, the API; how long each stage took."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from integration import stack
from integration.repair_fleet import RepairFleet


@dataclass(frozen=True)
class Times:
    """Seconds from the fault to the end of each stage, seen from outside, and the steps made twice."""

    incident: float
    checkpoint: float
    held: float
    elsewhere: float
    passed: float
    returned: float
    redone: int


def watch(fleet: RepairFleet, within_s: float = 240) -> Times:
    """Follow one repair to its end. Raises AssertionError with what the collector said last."""

    def wait(ask: Callable[[], Any], what: str) -> Any:
        try:
            return stack.wait_for(ask, within_s, what)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{told(fleet)}") from None

    def now_s() -> float:
        return (time.time_ns() - fleet.fault_ns) / 1e9

    wait(lambda: any(row["class"] == "gpu_lost" for row in fleet.get("incidents")["items"]), "the incident")
    incident = now_s()
    asked = wait(lambda: [row for row in fleet.saves() if row[3] != "-"], "a checkpoint that was asked for")
    checkpoint = (asked[0][0] - fleet.fault_ns) / 1e9
    assert asked[0][1] == "saved", asked
    wait(lambda: fleet.node_says("gn1")[1].startswith("gpuvigil: "), "our drain")
    held = now_s()
    wait(lambda: any(step.node != "gn1" for step in fleet.steps()), "steps elsewhere")
    before = [step for step in fleet.steps() if step.restarts == 0]
    after = [step for step in fleet.steps() if step.restarts > 0]
    elsewhere = (after[0].at_ns - fleet.fault_ns) / 1e9
    wait(lambda: any(a["kind"] == "validate" and a["state"] == "done" for a in fleet.actions()), "validation")
    passed = now_s()
    wait(lambda: fleet.cases() and fleet.cases()[0]["outcome"], "the case's end")
    return Times(
        incident=incident, checkpoint=checkpoint, held=held, elsewhere=elsewhere, passed=passed,
        returned=now_s(), redone=before[-1].step - after[0].step + 1,
    )  # fmt: skip


def told(fleet: RepairFleet) -> str:
    """All that helps to understand a run that went wrong."""
    parts = [f"slurm: {fleet.slurm.run('sinfo', '-N', '-o', '%N %T %E')}\n{fleet.slurm.run('squeue')}"]
    with contextlib.suppress(OSError):
        parts += [json.dumps(fleet.get(path), indent=1)[-6000:] for path in ("cases", "actions")]
    return "\n".join([*parts, fleet.log("collector")])
