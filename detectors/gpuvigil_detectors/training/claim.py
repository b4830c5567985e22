"""What a judge of training says of a job, or of one rank of it, and how it becomes a finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpuvigil_detectors.base import Evidence, Finding, Severity
from gpuvigil_detectors.training.jobs import Job, Rank

_GPUS_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One judgement. rank None: it is about the whole job. notify False: recorded, opens nothing."""

    rule: str
    fault_class: str
    severity: Severity
    start_ns: int
    sentence: str
    evidence: Evidence
    rank: Rank | None = None
    notify: bool = True

    def finding(self, job: Job, now_ns: int) -> Finding:
        """Turn it into a finding about the rank's entity, else about the job's."""
        return Finding(
            detector="training", rule=self.rule, fault_class=self.fault_class, severity=self.severity,
            entity=job.entity_of(self.rank) if self.rank else job.entity, start_ns=self.start_ns,
            end_ns=now_ns, sentence=self.sentence, origin="job", evidence=self.evidence, notify=self.notify,
        )  # fmt: skip


def facts_of(job: Job, rank: Rank | None) -> tuple[tuple[str, str], ...]:
    """What every finding about a job carries; node_gpus: the job's on the node that the finding is about."""
    facts = [("job", job.name), ("ranks", str(job.world_size))]
    if rank is not None:
        facts += [("rank", str(rank.number)), ("gpu", rank.gpu)]
    node = rank.node if rank is not None else job.ranks[min(job.ranks)].node
    gpus = sorted({one.gpu for one in job.ranks.values() if one.node == node and one.gpu})
    facts.append(("node_gpus", ",".join(gpus[:_GPUS_MAX])))
    return tuple((key, value) for key, value in facts if value)
