"""Findings into claims, and many like claims into one: the pure half of incident building."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpuvigil_collector.incidents.ranking import FLEET, Causes, Claim, Key, Widening, locality
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import SEVERITIES, Finding
from gpuvigil_protos import entity as names


def claims_of(findings: Iterable[Finding]) -> list[Claim]:
    """Gather findings by class and entity; the gravest and earliest finding of a claim comes first."""
    gathered: dict[Key, list[Finding]] = {}
    for finding in findings:
        gathered.setdefault((finding.fault_class, finding.entity), []).append(finding)
    return [_claim(key, found) for key, found in gathered.items()]


def _claim(key: Key, found: list[Finding]) -> Claim:
    found.sort(key=_gravest_first)
    return Claim(
        fault_class=key[0],
        entity=key[1],
        start_ns=min(finding.start_ns for finding in found),
        statistical=all(_is_statistical(finding) for finding in found),
        findings=tuple(found),
    )


def _gravest_first(finding: Finding) -> tuple[bool, int, int, str, str]:
    gravity = -SEVERITIES.index(finding.severity)
    return _is_statistical(finding), gravity, finding.start_ns, finding.detector, finding.rule


def _is_statistical(finding: Finding) -> bool:
    return finding.origin == "statistics"


def widen(claims: list[Claim], causes: Causes, topology: Topology) -> list[Claim]:
    """Add a claim about the node or the fleet where enough of its parts claim the same at once."""
    return claims + [wide for row in causes.widenings for wide in _widened(claims, row, topology)]


def _widened(claims: list[Claim], row: Widening, topology: Topology) -> list[Claim]:
    parts: dict[str, dict[str, Claim]] = {}
    for claim in claims:
        node, part = locality(claim.entity)
        if claim.fault_class == row.fault_class and (row.to == FLEET or names.kind_of(part) == "gpu"):
            shared, member = (FLEET, node) if row.to == FLEET else (node, part)
            parts.setdefault(shared, {})[member] = claim
    wide = []
    for shared, members in parts.items():
        total = topology.node_count if row.to == FLEET else len(topology.gpus(shared))
        if len(members) >= row.count_min and len(members) >= row.share_min * total:
            wide.append(_shared_claim(row, shared, list(members.values()), total))
    return wide


def _shared_claim(row: Widening, shared: str, members: list[Claim], total: int) -> Claim:
    """Build the claim about what the members share; its sentence counts them and quotes the first."""
    first = min(members, key=lambda claim: (claim.start_ns, claim.entity))
    what, where = ("nodes", "the fleet") if row.to == FLEET else ("GPUs", f"node {shared}")
    finding = replace(
        first.findings[0],
        detector="incidents",
        rule=f"widened_{row.fault_class}",
        entity=FLEET if row.to == FLEET else f"{shared}/{names.NODE}",
        fault_class=row.as_class,
        start_ns=first.start_ns,
        severity=max((claim.findings[0].severity for claim in members), key=SEVERITIES.index),
        sentence=f"{len(members)} of {total} {what} of {where} at once; first: {first.findings[0].sentence}",
    )
    return Claim(
        fault_class=row.as_class,
        entity=finding.entity,
        start_ns=first.start_ns,
        statistical=all(claim.statistical for claim in members),
        findings=(finding,),
    )
