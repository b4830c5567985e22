"""Following repairs from outside, by the scheduler's word, the job's files and the API: the stages' times."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from integration import stack
from integration.repair_base import Fleet


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


def watch(fleet: Fleet, within_s: float = 240) -> Times:
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
    wait(fleet.held, "our hold")
    held = now_s()
    wait(lambda: any(step.node != "gn1" for step in fleet.steps()), "steps elsewhere")
    before = [step for step in fleet.steps() if step.node == "gn1"]
    after = [step for step in fleet.steps() if step.node != "gn1"]
    elsewhere = (after[0].at_ns - fleet.fault_ns) / 1e9
    wait(lambda: any(a["kind"] == "validate" and a["state"] == "done" for a in fleet.actions()), "validation")
    passed = now_s()
    wait(lambda: fleet.cases() and fleet.cases()[0]["outcome"], "the case's end")
    return Times(
        incident=incident, checkpoint=checkpoint, held=held, elsewhere=elsewhere, passed=passed,
        returned=now_s(), redone=before[-1].step - after[0].step + 1,
    )  # fmt: skip


def offend(fleet: Fleet, within_s: float = 180) -> list[float]:
    """Follow a node that fails again and again, until a person is asked; returns the held times, in s.

    Its held times grow: each return waits twice as long as the one before. At last it stays held.
    """
    times = []
    for number in range(1 + len(fleet.again_s)):
        try:
            stack.wait_for(fleet.held, within_s + fleet.fault_at_s, f"hold {number + 1}")
            since = time.monotonic()
            stack.wait_for(partial(_over, fleet, number), within_s, "what it comes to")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{told(fleet)}") from None
        times.append(time.monotonic() - since)
        if fleet.held():
            return times
    raise AssertionError(f"never kept for a person\n{told(fleet)}")


def _over(fleet: Fleet, number: int) -> bool:
    """Whether gn1 is free again, or its case of this number, from 0, has ended."""
    mine = [case for case in fleet.cases() if case["node"] == "gn1"]
    return not fleet.held() or (len(mine) > number and bool(mine[number]["outcome"]))


def told(fleet: Fleet) -> str:
    """All that helps to understand a run that went wrong."""
    parts = [fleet.told()]
    with contextlib.suppress(OSError):
        parts += [json.dumps(fleet.get(path), indent=1)[-6000:] for path in ("cases", "actions")]
    return "\n".join([*parts, fleet.log("collector")])
