"""kill -9 of collector or agent in the midst of a repair, as a transition of it is on disk; how it ends."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from integration.repair_base import Fleet
from integration.repair_watch import told

ENDS_S = 300
"""Killed between a request and its answer it looks for a minute, as the request may still arrive."""


def kill_at(fleet: Fleet, number: int, what: str = "collector") -> tuple[str, str]:
    """Kill and start again at the number-th transition of a repair, from 1; returns it once the case ended.

    Raises AssertionError where the case does not end, or no such transition comes.
    """
    fleet.start(lease_s=60)
    coming = moments(fleet)
    for _ in range(number):
        at = next(coming)
    if what == "collector":
        fleet.kill_collector()
        time.sleep(1)
        fleet.start_collector()
    else:
        fleet.kill_agent("gn1")
        time.sleep(1)
        fleet.start_agent("gn1")
    assert ended(fleet), told(fleet)
    return at


def repeated(fleet: Fleet) -> str:
    """What was done more than once, by the job's own files and the site's power tool; "" for nothing."""
    runs = [node for node, _ in groupby(fleet.steps(), key=lambda step: step.node)]
    reboots = (fleet.folder / "reboots").read_text().split()
    wrong = [] if len(runs) == 2 and runs[0] == "gn1" else [f"the job ran on {', '.join(runs)}"]
    return "; ".join(wrong + ([] if reboots == ["gn1"] else [f"rebooted {len(reboots)} times"]))


def moments(fleet: Fleet, within_s: float = 150) -> Iterator[tuple[str, str]]:
    """Each transition of an action (not a denial) as it comes to be on disk."""
    seen: set[tuple[str, str]] = set()
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for row in transitions(fleet.folder / "collector"):
            if row not in seen and row[1] != "denied":
                seen.add(row)
                yield row
        time.sleep(0.002)
    raise AssertionError(f"no further transition within {within_s} s\n{told(fleet)}")


def transitions(state: Path) -> list[tuple[str, str]]:
    """(id, state) of each action on disk; read beside the collector."""
    with contextlib.suppress(sqlite3.Error):
        with contextlib.closing(sqlite3.connect(f"file:{state}/actions.sqlite?mode=ro", uri=True)) as base:
            return base.execute("SELECT id, state FROM actions").fetchall()
    return []


def ended(fleet: Fleet, within_s: float = ENDS_S) -> bool:
    """Whether the one case ends in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (cases := fleet.cases()) and cases[0]["outcome"]:
                return True
        time.sleep(0.5)
    return False
