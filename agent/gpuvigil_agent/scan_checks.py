"""What a scan's facts mean: findings with code, severity, evidence, meaning and next step. Pure.

The rules, limits and texts are data/scan_checks.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final, Literal

import msgspec

from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.kernel_sources import KernelRecord

Severity = Literal["critical", "warning", "info", ""]
_RANK: Final = {"critical": 3, "warning": 2, "info": 1, "": 0}
Readings = dict[tuple[str, str], float]
"""(metric name, entity) -> value."""


class _Text(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    severity: Severity
    meaning: str
    next_step: str


class ReadingRow(_Text, kw_only=True, frozen=True):
    """One limit; the head of the file explains the fields."""

    code: str
    metric: str
    test: Literal["above", "below", "share_below", "below_other", "bits"]
    limit: float = 0
    other: str = ""
    entity: str = ""
    when: dict[str, float] = {}
    severity_else: Severity = ""
    names: dict[str, str] = {}


class FactRow(_Text, kw_only=True, frozen=True):
    """One thing the program finds out by itself; `rules` are those of kernel_patterns.toml."""

    code: str
    rules: list[str] = []


class XidRow(_Text, kw_only=True, frozen=True):
    """What some Xid numbers mean."""

    codes: list[int]


class Catalogue(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The whole file."""

    reading: list[ReadingRow]
    fact: list[FactRow]
    xid: list[XidRow]
    xid_unknown: _Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFinding:
    """One finding; evidence is numbers or a line that a person can check."""

    code: str
    severity: Severity
    target: str
    evidence: str
    meaning: str
    next_step: str


@dataclass(slots=True, kw_only=True)
class Facts:
    """Everything one scan has learned. facts: (code, target, evidence) of what is no reading.

    kernel_records: the kernel's own, not yet read for what they say. checked: the areas that were looked
    at; unchecked: (area, why) of those that could not be.
    """

    readings: Readings = field(default_factory=dict)
    events: list[AgentEvent] = field(default_factory=list)
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    kernel_records: list[KernelRecord] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[tuple[str, str]] = field(default_factory=list)


@cache
def catalogue() -> Catalogue:
    """Read the shipped file once; a fault in it is a bug and raises msgspec.ValidationError."""
    text = resources.files("gpuvigil_agent").joinpath("data/scan_checks.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Catalogue)


def judge(facts: Facts) -> list[ScanFinding]:
    """Return the findings, worst first; of one code and target the worst alone."""
    worst: dict[tuple[str, str], ScanFinding] = {}
    for finding in (*_by_reading(facts.readings), *_by_fact(facts.facts), *_by_event(facts.events)):
        key = (finding.code, finding.target)
        if finding.severity and (key not in worst or _RANK[finding.severity] > _RANK[worst[key].severity]):
            worst[key] = finding
    return sorted(worst.values(), key=lambda f: (-_RANK[f.severity], f.code, f.target))


def state_of(findings: Iterable[ScanFinding], checked: list[str]) -> tuple[str, int]:
    """Return the word and the exit code: ok 0, warning 1, critical 2, unknown 3 (nothing was checked)."""
    rank = max((_RANK[finding.severity] for finding in findings), default=0)
    if rank == _RANK["critical"]:
        return "critical", 2
    if not checked:
        return "unknown", 3
    return ("warning", 1) if rank == _RANK["warning"] else ("ok", 0)


def _by_reading(readings: Readings) -> Iterator[ScanFinding]:
    for row in catalogue().reading:
        for (metric, entity), value in readings.items():
            if metric != row.metric or not entity.startswith(row.entity):
                continue
            other = readings.get((row.other, entity))
            if (row.other and not other) or not _holds(row, value, other or 0.0):
                continue
            stands = all(readings.get((name, entity), 0.0) >= least for name, least in row.when.items())
            yield ScanFinding(
                code=row.code,
                severity=row.severity if stands else row.severity_else,
                target=entity,
                evidence=_evidence(row, value, other),
                meaning=row.meaning,
                next_step=row.next_step,
            )


def _holds(row: ReadingRow, value: float, other: float) -> bool:
    if row.test == "bits":
        return bool(int(value) & int(row.limit))
    if row.test == "share_below":
        return value / other < row.limit
    if row.test == "below_other":
        return value < other
    return value > row.limit if row.test == "above" else value < row.limit


def _evidence(row: ReadingRow, value: float, other: float | None) -> str:
    if row.test == "share_below" and other:
        return f"{row.metric} is {value:.4g} of {other:.4g} ({value / other:.1%}; limit {row.limit:.0%})"
    if row.test == "below_other":
        return f"{row.metric} is {value:g}, {row.other} is {other:g}"
    if row.test == "bits":
        return f"{row.metric} is {int(value):#x}, bit {int(row.limit):#x} is set"
    named = row.names.get(f"{value:g}")
    return f"{row.metric} is {value:g}" + (f" ({named})" if named else f" (limit {row.limit:g})")


def _by_fact(found: list[tuple[str, str, str]]) -> Iterator[ScanFinding]:
    rows = {row.code: row for row in catalogue().fact}
    for code, target, evidence in found:
        yield _finding(code, rows[code], target, evidence)


def _by_event(events: list[AgentEvent]) -> Iterator[ScanFinding]:
    """One finding for each number or rule and target, however often it was reported."""
    groups: dict[tuple[str, int, str, str], list[AgentEvent]] = {}
    for event in events:
        if not event.synthetic:
            key = (event.kind, event.code, event.fields.get("rule", ""), event.entity)
            groups.setdefault(key, []).append(event)
    for (kind, code, rule, target), group in groups.items():
        text = _explain(kind, code, rule, group)
        if text is not None:
            times = f"{len(group)} times, last: " if len(group) > 1 else ""
            yield _finding(text[0], text[1], target, times + group[-1].text)


def _explain(kind: str, code: int, rule: str, group: list[AgentEvent]) -> tuple[str, _Text] | None:
    book = catalogue()
    facts = {row.code: row for row in book.fact}
    if kind == "xid":
        return f"xid_{code}", next((row for row in book.xid if code in row.codes), book.xid_unknown)
    if kind == "sxid":
        fatal = any(event.fields.get("severity") == "Fatal" for event in group)
        return f"sxid_{code}", facts["sxid_fatal" if fatal else "sxid"]
    if kind == "kernel":
        row = next((row for row in book.fact if rule in row.rules), None)
        return (row.code, row) if row is not None else None
    names = {"gpu_lost": "gpu_lost", "driver_stuck": "driver_hung", "driver_crashed": "driver_crashed"}
    return (names[kind], facts[names[kind]]) if kind in names else None


def _finding(code: str, row: _Text, target: str, evidence: str) -> ScanFinding:
    return ScanFinding(
        code=code, severity=row.severity, target=target, evidence=evidence,
        meaning=row.meaning, next_step=row.next_step,
    )  # fmt: skip
