"""View: what one tick leaves for readers. Immutable, so that API and metrics never wait for the brain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuvigil_collector.export.jobs import JobView
from gpuvigil_collector.export.recent import LATELY, Losses
from gpuvigil_collector.goodput.report import GoodputView
from gpuvigil_collector.incidents.incident import Incident, by_job
from gpuvigil_collector.repair.stage import RepairView
from gpuvigil_collector.saves.request import SaveRequest
from gpuvigil_collector.topology import ONE_DOMAIN
from gpuvigil_detectors.base import NodeFact, Snapshot
from gpuvigil_protos import entity as names

_NONE = Losses()
_SEE = "; see /api/v1/ledger"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The fleet as of `now_ns`. snapshot is None before the first tick. lately: losses of the last 10 min."""

    started_ns: int
    now_ns: int
    ticks: int = 0
    snapshot: Snapshot | None = None
    nodes: Mapping[str, NodeFact] = field(default_factory=dict)
    open: Mapping[str, Incident] = field(default_factory=dict)
    resolved: Mapping[str, Incident] = field(default_factory=dict)
    jobs: tuple[JobView, ...] = ()
    goodput: tuple[GoodputView, ...] = ()
    saves: tuple[SaveRequest, ...] = ()
    repair: RepairView = field(default_factory=RepairView)
    not_opened: int = 0
    lately: Losses = _NONE
    learning: Mapping[str, Any] = field(default_factory=dict)
    journal_fault: str = ""
    journal_failures: int = 0
    journal_entries: int = 0
    journal_sequence: int = 0
    journal_head: str = ""

    @property
    def learning_until_ns(self) -> int | None:
        """When the statistical stage may notify; None once it may, or when it is off."""
        until_ns: int | None = self.learning.get("learning_until_ns")
        return until_ns if until_ns is not None and until_ns > self.now_ns else None

    def alerting(self) -> list[Incident]:
        """Open incidents that may alert: neither silenced by an operator nor of a node under maintenance."""
        marks = self.repair.marks
        if marks is None:
            return list(self.open.values())
        return [
            one for one in self.open.values()
            if one.fingerprint not in marks.silenced and one.node not in marks.maintenance
        ]  # fmt: skip

    def open_by_node(self) -> dict[str, int]:
        """Open incidents of each node; the fleet's own are under the empty name."""
        counts: dict[str, int] = {}
        for incident in self.open.values():
            counts[incident.node] = counts.get(incident.node, 0) + 1
        return counts

    def open_by_job(self) -> dict[str, list[str]]:
        """Ids of the open incidents that are about each job or a rank of it."""
        return {job: [one.id for one in mine] for job, mine in by_job(self.open.values()).items()}

    def gpu_states(self) -> dict[tuple[str, str], str]:
        """(node, uuid) -> `suspect` or `lost`, for GPUs with an open incident; all others are `ok`."""
        states: dict[tuple[str, str], str] = {}
        for incident in self.open.values():
            uuid = names.gpu_uuid_of(incident.target.partition("/")[2])
            if uuid is not None:
                lost = incident.fault_class == "gpu_lost"
                key = (incident.node, uuid)
                states[key] = "lost" if lost or states.get(key) == "lost" else "suspect"
        return states


def health_detail(view: View, ledger: list[dict[str, object]], faults: list[str]) -> list[str]:
    """Sentences on what is wrong with the collector's own work now; empty means all is well."""
    lately, gaps, refused = view.lately, *_totals(ledger)
    told = [
        (lately.gaps, f"{lately.gaps} sequences never arrived {LATELY}, {gaps} in all{_SEE}"),
        (lately.refused, f"{lately.refused} messages refused {LATELY}, {refused} in all{_SEE}"),
        (lately.not_opened, f"{lately.not_opened} findings opened no incident {LATELY}: too many are open"),
        (view.journal_fault, view.journal_fault),
    ]
    return faults + [sentence for wrong, sentence in told if wrong]


def notes(view: View, ledger: list[dict[str, object]]) -> list[str]:
    """Sentences that an operator should know and that are no fault now."""
    silent = sum(not fact.connected for fact in view.nodes.values())
    lately, gaps, refused = view.lately, *_totals(ledger)
    told = [
        (True, ONE_DOMAIN),
        (silent, f"{silent} of {len(view.nodes)} nodes are silent"),
        (gaps and not lately.gaps, f"{gaps} sequences never arrived, none {LATELY}{_SEE}"),
        (refused and not lately.refused, f"{refused} messages were refused, none {LATELY}{_SEE}"),
    ]
    return [sentence for worth_saying, sentence in told if worth_saying]


def _totals(ledger: list[dict[str, object]]) -> tuple[int, int]:
    """Return all sequences lost and all messages refused that the ledger knows of."""
    return _sum(ledger, "gap_sequences"), sum(sum(_reasons(row).values()) for row in ledger)


def _sum(ledger: list[dict[str, object]], field_name: str) -> int:
    return sum(value for row in ledger if isinstance(value := row.get(field_name), int))


def _reasons(row: dict[str, object]) -> dict[str, int]:
    refused = row.get("refused")
    return refused if isinstance(refused, dict) else {}
