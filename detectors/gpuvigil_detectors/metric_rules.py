"""Metric rules: the catalogue's bounds on readings, held for a time, and the sentence that each one says.

Everything is vectorised over the fleet; Python touches only rows that are active.
Blind spot: a rule knows one entity and its own past, never its peers.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors import catalogue
from gpuvigil_detectors.base import Evidence, Finding, Snapshot
from gpuvigil_detectors.conditions import YES, Reading, Test, Verdict
from gpuvigil_detectors.persistence import Persistence
from gpuvigil_detectors.series_state import Joins, take

_GPU_IN_NAME: Final = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z-]+")
_SECOND: Final = 1_000_000_000
_FRESH_MAX: Final = 500  # findings of one rule that are worded anew in one tick; a storm takes turns


def blamed(entity: str, target: str) -> str:
    """The entity a finding names: a link's rule blames its GPU."""
    if target == "self":
        return entity
    node, _, local = entity.partition("/")
    found = _GPU_IN_NAME.search(local)
    return f"{node}/gpu:{found[0]}" if found else entity


class _Ignored:
    """Which series a rule passes over by the name after the kind; answers are kept while the list stays."""

    def __init__(self, patterns: list[str]) -> None:
        joined = "|".join(fnmatch.translate(pattern) for pattern in patterns)
        self._pattern = re.compile(joined) if patterns else None
        self._entities: tuple[str, ...] | None = None
        self._mask: NDArray[np.bool_] = np.zeros(0, dtype=bool)

    def mask(self, entities: tuple[str, ...]) -> NDArray[np.bool_]:
        if entities is not self._entities and entities != self._entities:
            pattern = self._pattern
            names = (entity.partition("/")[2].partition(":")[2] for entity in entities)
            hits = (pattern is not None and pattern.match(name) is not None for name in names)
            self._mask = np.fromiter(hits, dtype=bool, count=len(entities))
            self._entities = entities
        return self._mask


class _Running:
    """One rule with its tests' memory and its persistence."""

    def __init__(self, rule: catalogue.MetricRule) -> None:
        self.rule = rule
        self._test = Test(rule)
        self._guards = [Test(guard) for guard in rule.when]
        self._joins = Joins()
        self._ignored = _Ignored(rule.ignore)
        self._held = Persistence(for_s=rule.for_s, gap_s=rule.gap_s, clear_s=rule.clear_s, hold_s=rule.hold_s)
        self._said: dict[str, Finding] = {}

    def remember(self, finding: Finding) -> None:
        """Take back from a finding of an earlier run what its series was at its best."""
        expected = finding.evidence.expected
        if expected is not None and self.rule.test in ("below_best", "above_best"):
            self._test.remember(finding.entity, expected)

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Return what holds now; in a storm a finding's numbers may be as many ticks old as turns take."""
        self._held.state.align(snapshot.latest(self.rule.metric).entities)
        reading, verdict = self._test.ask(snapshot, self._held.active)
        answer = np.where(self._ignored.mask(reading.entities), np.int8(0), verdict.answer)
        for number, guard in enumerate(self._guards):
            answer = np.minimum(answer, self._guard(number, guard, reading, snapshot))
        active = self._held.update(reading.entities, answer, reading.time_ns, snapshot.now_ns)
        rows: list[int] = np.flatnonzero(active).tolist()
        turns = -(-len(rows) // _FRESH_MAX)
        turn = snapshot.now_ns // _SECOND % turns if turns else 0
        before, names, said = self._said, reading.entities, {}
        for row in rows:
            known = before.get(names[row]) if row % turns != turn else None
            said[names[row]] = known or self._finding(row, reading, verdict, snapshot.now_ns)
        self._said = said
        return list(said.values())

    def _guard(self, number: int, guard: Test, reading: Reading, snapshot: Snapshot) -> NDArray[np.int8]:
        """The guard's answer for the rule's own series: what is not yes is no, an unknown too."""
        guarded, verdict = guard.ask(snapshot)
        rows = self._joins.rows((str(number), ""), reading.entities, guarded.entities)
        holds: NDArray[np.bool_] = take(verdict.answer, rows, np.int8(0)) == YES
        return holds.astype(np.int8)

    def _finding(self, row: int, reading: Reading, verdict: Verdict, now_ns: int) -> Finding:
        rule = self.rule
        since_ns = int(self._held.since_ns[row]) or now_ns
        observed, expected = float(verdict.observed[row]), float(verdict.expected[row])
        entity = reading.entities[row]
        sentence = rule.sentence.format(
            observed=observed * rule.scale,
            expected=expected * rule.scale,
            bits=_hex(observed),
            seconds=max(0.0, (now_ns - since_ns) / _SECOND),
            window_s=rule.window_s,
            name=_short(entity),
        )
        evidence = Evidence(
            observed=_finite(observed),
            expected=_healthy(rule.unit, observed, expected),
            unit=rule.unit,
            since_ns=since_ns,
        )
        return Finding(
            detector="rules",
            rule=rule.name,
            entity=blamed(entity, rule.target),
            fault_class=rule.fault_class,
            severity=rule.severity,
            start_ns=since_ns,
            end_ns=now_ns,
            sentence=sentence,
            metric=rule.metric,
            origin=rule.origin,
            evidence=evidence,
            notify=rule.notify,
        )


def _healthy(unit: str, observed: float, expected: float) -> float | None:
    """Say what a healthy reading is: a mask has no such bit, a flag is the other way round."""
    if unit == "bitmask":
        return 0.0
    return 1.0 - observed if unit == "flag" else _finite(expected)


class MetricRules:
    """All rules of metric_rules.toml over one snapshot."""

    def __init__(self, rules: list[catalogue.MetricRule] | None = None) -> None:
        given = rules if rules is not None else catalogue.load("metric_rules", catalogue.MetricRules).rule
        self._running = [_Running(rule) for rule in given]
        self._unless = {rule.name: frozenset(rule.unless) for rule in given if rule.unless}

    def remember(self, findings: Iterable[Finding]) -> None:
        """Take back what the open findings of an earlier run rest on and no reading tells again."""
        by_name = {running.rule.name: running for running in self._running}
        for finding in findings:
            if finding.detector == "rules" and finding.rule in by_name:
                by_name[finding.rule].remember(finding)

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Return what holds now, one finding for each rule and entity blamed."""
        found: dict[tuple[str, str], Finding] = {}
        for running in self._running:
            for finding in running.tick(snapshot):
                key = (finding.rule, finding.entity)
                if key not in found or _stronger(finding, found[key]):
                    found[key] = finding
        return [finding for finding in found.values() if not self._explained(finding, found)]

    def _explained(self, finding: Finding, found: dict[tuple[str, str], Finding]) -> bool:
        return any((rule, finding.entity) in found for rule in self._unless.get(finding.rule, ()))


def _stronger(one: Finding, other: Finding) -> bool:
    return (one.evidence.observed or 0.0) > (other.evidence.observed or 0.0)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _hex(value: float) -> str:
    return f"0x{int(value):x}" if np.isfinite(value) else "?"


def _short(entity: str) -> str:
    return entity.partition("/")[2].partition(":")[2]
