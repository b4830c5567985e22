"""Who is right? Joins the simulators' truth with the collector's incidents by the rule of docs/demo.md.

Pure: no clock, no I/O but the limits file of this package. A fault is found by the earliest incident of
equal class and equal target that opened between onset and onset + limit of the class; an incident finds one
fault. Faults that are nobody's fault (`silent`) must have no incident on their node. What matches nothing is
a false alarm.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from gpuvigil_cli.client import CliError, Json

Limit = Callable[[str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One line of a truth file. target is a full entity; silent: an incident about it would be wrong."""

    fault: str
    fault_class: str
    target: str
    injected_ns: int
    silent: bool = False

    @property
    def node(self) -> str:
        """The node part of the target."""
        return self.target.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a fault. incident: what found it, else what may have mistaken it, else None."""

    fault: Fault
    incident: Json | None
    correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All verdicts in order of onset, and every incident that matched no fault."""

    verdicts: tuple[Verdict, ...]
    false_alarms: tuple[Json, ...]

    @property
    def good(self) -> bool:
        """True when there was a fault, all verdicts are correct and there is no false alarm."""
        return bool(self.verdicts) and all(v.correct for v in self.verdicts) and not self.false_alarms


def load_limits() -> Limit:
    """Return the published limit of a class, in nanoseconds."""
    table = tomllib.loads((files("gpuvigil_cli.demo") / "limits.toml").read_text(encoding="utf-8"))
    return lambda fault_class: round(table["class_s"].get(fault_class, table["default_s"]) * 1e9)


def parse_truth(line: str, origin: str) -> Fault:
    """Read one line of a truth file. A fault without a class is expected to be silent. Raises CliError."""
    try:
        row = json.loads(line)
        return Fault(
            fault=str(row["fault"]),
            fault_class=str(row["class"] or ""),
            target=str(row["target"]),
            injected_ns=int(row["injected_ns"]),
            silent=bool(row.get("silent", not row["class"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(
            f"{origin}: not a line of truth: {type(error).__name__} {error}: {line[:120]!r}"
        ) from None


def join(faults: Sequence[Fault], incidents: Sequence[Json], limit: Limit) -> Outcome:
    """Judge all faults against all incidents (rows of GET /api/v1/incidents?state=all)."""
    ordered = sorted(faults, key=lambda fault: fault.injected_ns)
    free = sorted(incidents, key=_opened)
    found: dict[int, Json] = {}
    for place, fault in enumerate(ordered):
        match = None if fault.silent else next((row for row in free if _finds(row, fault, limit)), None)
        if match is not None:
            found[place] = match
            free.remove(match)
    verdicts = tuple(
        Verdict(fault=fault, incident=found[place], correct=True)
        if place in found
        else _unmatched(fault, free, limit)
        for place, fault in enumerate(ordered)
    )
    return Outcome(verdicts=verdicts, false_alarms=tuple(free))


def _opened(row: Json) -> int:
    opened = row.get("opened_ns")
    return opened if isinstance(opened, int) else 0


def _in_time(row: Json, fault: Fault, limit: Limit) -> bool:
    return fault.injected_ns <= _opened(row) <= fault.injected_ns + limit(fault.fault_class)


def _finds(row: Json, fault: Fault, limit: Limit) -> bool:
    same = row.get("class") == fault.fault_class and row.get("target") == fault.target
    return same and _in_time(row, fault, limit)


def _unmatched(fault: Fault, free: Sequence[Json], limit: Limit) -> Verdict:
    """Show what may have been taken for the fault: same target in time, else same node in time."""
    timely = [row for row in free if _in_time(row, fault, limit)]
    near = [row for row in timely if row.get("target") == fault.target]
    near = near or [row for row in timely if str(row.get("target")).partition("/")[0] == fault.node]
    return Verdict(fault=fault, incident=near[0] if near else None, correct=fault.silent and not near)


def as_json(outcome: Outcome, *, nodes: int, gpus: int, seconds: float) -> Json:
    """Return the one object that `gpuvigil demo --json` prints."""
    return {
        "faults": [_row(verdict) for verdict in outcome.verdicts],
        "false_alarms": len(outcome.false_alarms),
        "nodes": nodes,
        "gpus": gpus,
        "seconds": round(seconds, 1),
    }


def _row(verdict: Verdict) -> Json:
    row = verdict.incident or {}
    return {
        "fault": verdict.fault.fault,
        "target": verdict.fault.target,
        "injected_ns": verdict.fault.injected_ns,
        "found_ns": row.get("opened_ns"),
        "incident": row.get("id"),
        "found_class": row.get("class"),
        "found_target": row.get("target"),
        "correct": verdict.correct,
    }
