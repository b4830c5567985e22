"""Crowded nodes: beyond `node_max` open incidents a node gets one more, which stands for all the rest.

Without this one node, broken or hostile, uses up what the whole fleet may open.
"""

from __future__ import annotations

from gpuvigil_collector.incidents.ranking import Claim
from gpuvigil_detectors.base import SEVERITIES, Finding
from gpuvigil_protos import entity as names

RULE = "too_many_incidents"
_CLASS = "monitor_fault"


def crowd_claim(node: str, refused: list[Claim], node_max: int) -> Claim:
    """Say once about the node what found no room: as grave as the gravest of it, since the first of it."""
    first = min(refused, key=lambda claim: (claim.start_ns, claim.key))
    severity = max((claim.findings[0].severity for claim in refused), key=SEVERITIES.index)
    finding = Finding(
        detector="incidents", rule=RULE, entity=f"{node}/{names.NODE}", fault_class=_CLASS, severity=severity,
        start_ns=first.start_ns, end_ns=max(claim.findings[0].end_ns for claim in refused), origin="agent",
        sentence=f"{node_max} incidents are open on {node}; {len(refused)} further faults are shown here "
        f"alone, first {first.fault_class} on {first.entity}: {first.findings[0].sentence}",
        synthetic=first.synthetic,
    )  # fmt: skip
    return Claim(
        fault_class=_CLASS, entity=finding.entity, start_ns=first.start_ns, statistical=False,
        findings=(finding,), synthetic=first.synthetic,
    )  # fmt: skip
