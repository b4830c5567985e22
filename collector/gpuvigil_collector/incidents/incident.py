"""Incident: findings that share a cause, under one id, from opened to resolved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from gpuvigil_collector.incidents.ranking import FLEET, Claim, Key, locality
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import SEVERITIES, Finding, Severity
from gpuvigil_protos import entity as names
from gpuvigil_protos.fault_classes import FAULT_CLASSES

State = Literal["open", "resolved"]
_NS_PER_HOUR = 3600e9
MEMBERS_MAX = 20_000  # a claim or two of every node of the largest fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One fault of one scope. Times are ns; lead_start_ns: the cause began; opened_ns: we said so.

    findings: the newest of each (detector, rule, entity, class), cause first, bounded; findings_dropped
    counts the rest. members: every claim that belongs here, so that it opens nothing else. gpus: at stake.
    synthetic: all of it is a drill.
    """

    id: str
    fingerprint: str
    fault_class: str
    scope: str
    severity: Severity
    state: State
    node: str
    target: str
    cause: str
    lead_start_ns: int
    opened_ns: int
    seen_ns: int
    resolved_ns: int | None = None
    gpus: int = 0
    statistical: bool = False
    synthetic: bool = False
    findings: tuple[Finding, ...] = ()
    findings_dropped: int = 0
    members: frozenset[Key] = frozenset()
    merged_into: str = ""

    @property
    def lead(self) -> Claim:
        """The cause as a claim, so that the table can compare it with others."""
        return Claim(
            fault_class=self.fault_class,
            entity=self.target,
            start_ns=self.lead_start_ns,
            statistical=self.statistical,
            findings=self.findings[:1],
            synthetic=self.synthetic,
        )

    def role(self, finding: Finding) -> Literal["cause", "symptom"]:
        """Tell whether a finding speaks of the cause itself."""
        same = (finding.fault_class, finding.entity) == (self.fault_class, self.target)
        return "cause" if same else "symptom"

    def gpu_hours(self, now_ns: int) -> float:
        """GPU-hours at stake so far: GPUs of the scope times the time since the cause began."""
        end_ns = self.resolved_ns if self.resolved_ns is not None else now_ns
        return self.gpus * max(0, end_ns - self.lead_start_ns) / _NS_PER_HOUR


def by_job(incidents: Iterable[Incident]) -> dict[str, list[Incident]]:
    """Return the incidents that are about each job or a rank of it, in the order given."""
    found: dict[str, list[Incident]] = {}
    for incident in incidents:
        jobs = {names.job_of(entity.partition("/")[2]) for _, entity in incident.members}
        for job in jobs:
            if job is not None:
                found.setdefault(job, []).append(incident)
    return found


def fingerprint(fault_class: str, target: str) -> str:
    """Name the fault itself, equal over restarts and re-openings."""
    return hashlib.sha256(f"{fault_class}\n{target}".encode()).hexdigest()[:16]


def scope_of(fault_class: str, target: str) -> str:
    """Choose the scope word of a class for this target: a class's own scope where the entity fits it."""
    if target == FLEET:
        return "fleet"
    kind = names.kind_of(target.partition("/")[2])
    scopes = FAULT_CLASSES.get(fault_class, (("node",), ""))[0]
    if kind == "interface":
        return "ib" if target.partition("/")[2].startswith("interface:ib") else "eth"
    if kind in {"rank", "job"}:
        return "job"
    if kind in {"gpu", "nvlink"}:
        fitting = [scope for scope in scopes if scope in {"nvlink", "pcie"}]
        return fitting[0] if fitting else "gpu"
    return "node"


def lead_with(incident: Incident, claim: Claim, topology: Topology) -> Incident:
    """Make `claim` the cause of the incident: class, target, sentence and stakes follow it."""
    scope = scope_of(claim.fault_class, claim.entity)
    return replace(
        incident,
        fingerprint=fingerprint(*claim.key),
        fault_class=claim.fault_class,
        target=claim.entity,
        node="" if scope == "fleet" else locality(claim.entity)[0],
        scope=scope,
        cause=claim.findings[0].sentence,
        lead_start_ns=claim.start_ns,
        statistical=claim.statistical,
        synthetic=claim.synthetic,
        gpus=_ranks(claim) if scope == "job" else _gpus_at_stake(scope, claim.entity, topology),
    )


def _ranks(claim: Claim) -> int:
    """GPUs of a job: one a rank, as the job says."""
    ranks = dict(claim.findings[0].evidence.facts).get("ranks", "1")
    return int(ranks) if ranks.isdecimal() else 1


def _gpus_at_stake(scope: str, target: str, topology: Topology) -> int:
    if scope == "fleet":
        return topology.gpus_total()
    if scope in {"gpu", "nvlink", "pcie"}:
        return 1
    return len(topology.gpus(locality(target)[0]))


def with_claim(incident: Incident, claim: Claim, now_ns: int, findings_max: int) -> Incident:
    """Take a claim in: newest findings replace their own older ones, the severity only rises.

    The cause's sentence stays that of the finding which said it first, with its newest numbers.
    """
    notify = [finding.severity for finding in claim.findings if finding.notify]
    new_member = bool(notify) and claim.key not in incident.members and len(incident.members) < MEMBERS_MAX
    findings, dropped = _merged(incident, claim, findings_max)
    leads = incident.role(findings[0]) == "cause"
    return replace(
        incident,
        cause=findings[0].sentence if leads else incident.cause,
        findings=findings,
        findings_dropped=incident.findings_dropped + (dropped if new_member else 0),
        members=incident.members | {claim.key} if new_member else incident.members,
        seen_ns=now_ns if notify else incident.seen_ns,
        severity=max([incident.severity, *notify], key=SEVERITIES.index),
    )


def _merged(incident: Incident, claim: Claim, findings_max: int) -> tuple[tuple[Finding, ...], int]:
    """Return the findings with the claim's taken in, cause first, and how many found no room."""
    kept = {_identity(finding): finding for finding in incident.findings}
    dropped = 0
    for finding in claim.findings:
        old = kept.get(_identity(finding))
        if old is None and len(kept) >= findings_max:
            dropped += 1
        else:
            kept[_identity(finding)] = _continued(old, finding)
    return tuple(sorted(kept.values(), key=lambda finding: incident.role(finding) != "cause")), dropped


def _identity(finding: Finding) -> tuple[str, str, str, str]:
    return finding.detector, finding.rule, finding.entity, finding.fault_class


def _continued(old: Finding | None, new: Finding) -> Finding:
    return new if old is None else replace(new, start_ns=min(old.start_ns, new.start_ns))
