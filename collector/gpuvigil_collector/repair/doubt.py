"""False positives: what an operator said is none is believed less for a while, series by series.

A finding of such an incident opens nothing until it says clearly more than then: half again as far from what
was expected, or, where it has no number, that it happened anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import msgspec

from gpuvigil_detectors.base import Finding

FACTOR: Final = 1.5
_SERIES_MAX: Final = 50


class Doubt(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Who doubts, why, until when; levels: series -> how far it was off when that was said, 0 = no number."""

    by: str
    why: str
    since_ns: int
    until_ns: int
    levels: dict[str, float]


def levels_of(findings: Iterable[Finding]) -> dict[str, float]:
    """Return how far each series of an incident is off now, 50 at most."""
    return {_series(finding): _off(finding) for finding in list(findings)[:_SERIES_MAX]}


def believed(findings: list[Finding], doubts: Mapping[str, Doubt], now_ns: int) -> list[Finding]:
    """Return the findings; what is doubted and says no more than then opens nothing."""
    known: dict[str, Doubt] = {}
    for doubt in doubts.values():
        if doubt.until_ns > now_ns:
            known |= dict.fromkeys(doubt.levels, doubt)
    return [_weighed(finding, known.get(_series(finding))) for finding in findings] if known else findings


def _weighed(finding: Finding, doubt: Doubt | None) -> Finding:
    if doubt is None or not finding.notify:
        return finding
    level = doubt.levels[_series(finding)]
    more = _off(finding) > FACTOR * level if level > 0 else finding.start_ns > doubt.since_ns
    return finding if more else replace(finding, notify=False)


def _series(finding: Finding) -> str:
    return f"{finding.detector}|{finding.rule}|{finding.entity}|{finding.metric}"


def _off(finding: Finding) -> float:
    if finding.score is not None:
        return abs(finding.score)
    evidence = finding.evidence
    if evidence.observed is None or evidence.expected is None or not finding.metric:
        return 0.0
    return abs(evidence.observed - evidence.expected)
