"""Findings into claims, and many like claims into one: the pure half of incident building."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpuvigil_collector.incidents.ranking import Causes, Claim, Widening, locality
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import SEVERITIES, Finding
from gpuvigil_protos import entity as names


def claims_of(findings: Iterable[Finding]) -> list[Claim]:
    """Gather findings by class and entity, drills apart; the gravest and earliest of a claim comes first."""
    gathered: dict[tuple[str, str, bool], list[Finding]] = {}
    for finding in findings:
        gathered.setdefault((finding.fault_class, finding.entity, finding.synthetic), []).append(finding)
    return [_claim(found) for found in gathered.values()]


def _claim(found: list[Finding]) -> Claim:
    found.sort(key=_gravest_first)
    return Claim(
        fault_class=found[0].fault_class,
        entity=found[0].entity,
        start_ns=min(finding.start_ns for finding in found),
        statistical=all(_is_statistical(finding) for finding in found),
        findings=tuple(found),
        synthetic=found[0].synthetic,
    )


def _gravest_first(finding: Finding) -> tuple[bool, int, int, str, str]:
    gravity = -SEVERITIES.index(finding.severity)
    return _is_statistical(finding), gravity, finding.start_ns, finding.detector, finding.rule


def _is_statistical(finding: Finding) -> bool:
    return finding.origin == "statistics"


def widen(claims: list[Claim], causes: Causes, topology: Topology) -> list[Claim]:
    """Add a claim about the node where enough of its GPUs claim the same at once."""
    return claims + [wide for row in causes.widenings for wide in _widened(claims, row, topology)]


def _widened(claims: list[Claim], row: Widening, topology: Topology) -> list[Claim]:
    gpus_of: dict[tuple[str, bool], dict[str, Claim]] = {}
    for claim in claims:
        node, part = locality(claim.entity)
        if claim.fault_class == row.fault_class and names.kind_of(part) == "gpu":
            gpus_of.setdefault((node, claim.synthetic), {})[part] = claim
    wide = []
    for (node, _), gpus in gpus_of.items():
        total = len(topology.gpus(node))
        if len(gpus) >= row.count_min and len(gpus) >= row.share_min * total:
            wide.append(_node_claim(node, list(gpus.values()), total))
    return wide


def _node_claim(node: str, gpus: list[Claim], total: int) -> Claim:
    """Build the claim about the node; its sentence counts the GPUs and quotes the first."""
    first = min(gpus, key=lambda claim: (claim.start_ns, claim.entity))
    finding = replace(
        first.findings[0],
        detector="incidents",
        rule=f"many_{first.fault_class}",
        entity=f"{node}/{names.NODE}",
        start_ns=first.start_ns,
        severity=max((claim.findings[0].severity for claim in gpus), key=SEVERITIES.index),
        sentence=f"{len(gpus)} of {total} GPUs of {node} at once; first: {first.findings[0].sentence}",
    )
    return Claim(
        fault_class=first.fault_class,
        entity=finding.entity,
        start_ns=first.start_ns,
        statistical=all(claim.statistical for claim in gpus),
        findings=(finding,),
        synthetic=first.synthetic,
    )
