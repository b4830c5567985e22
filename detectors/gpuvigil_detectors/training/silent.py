"""A silent agent on a node whose job goes on: the monitor is at fault, not the node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gpuvigil_detectors.base import Evidence, Finding, Snapshot
from gpuvigil_detectors.training.jobs import SECOND_NS, Job

_SILENT_NS: Final = 10 * SECOND_NS
_SLACK_NS: Final = 5 * SECOND_NS


def node_lives(jobs: Iterable[Job], snapshot: Snapshot) -> list[Finding]:
    """Say of each silent node that its job's other ranks have ended steps since: they wait for its rank."""
    silent = {
        name: fact.last_seen_ns for name, fact in snapshot.nodes.items()
        if not fact.connected and snapshot.now_ns - fact.last_seen_ns > _SILENT_NS
    }  # fmt: skip
    if not silent:
        return []
    found = []
    for job in jobs:
        newest_ns = max(
            (int(r.end_ns[-1]) for r in job.living if len(r.end_ns) and r.node not in silent), default=0
        )
        for node in {rank.node for rank in job.living} & silent.keys():
            if newest_ns > silent[node] + _SLACK_NS:
                found.append(_finding(node, job.name, silent[node], snapshot.now_ns))
    return found


def _finding(node: str, job: str, since_ns: int, now_ns: int) -> Finding:
    return Finding(
        detector="training", rule="job_goes_on", entity=f"{node}/node", fault_class="monitor_fault",
        severity="info", start_ns=since_ns, end_ns=now_ns, origin="job", notify=False,
        sentence=f"job {job} has a rank on this node and goes on: the node lives, its agent does not answer",
        evidence=Evidence(since_ns=since_ns, facts=(("job", job),)),
    )  # fmt: skip
