"""Putting repair together: policy, site, records, kernel, executor, and where its words go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuvigil_collector import policy, safety, site
from gpuvigil_collector.action import Fence
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.repair.desk import RepairDesk
from gpuvigil_collector.repair.fleet import SchedulerView
from gpuvigil_collector.repair.hands import SafeHands
from gpuvigil_collector.repair.keep import Evidence
from gpuvigil_collector.repair.needs import Executor
from gpuvigil_collector.repair.saving import Saving
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.repair.stage import Repair
from gpuvigil_collector.repair.store import Kept, Records
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_detectors.base import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Senses:
    """What repair asks each tick; each answers at once with what was learned last."""

    scheduler: Callable[[], SchedulerView | None] = lambda: None
    fence: Callable[[], Fence | None] = lambda: None
    paused: Callable[[], str] = lambda: ""
    snapshot: Callable[[], Snapshot | None] = lambda: None


def make_repair(
    settings: Remediation, state: Path, *, records: Records, executor: Executor | None, saves: SaveDesk,
    journal: Journal, senses: Senses,
) -> Repair:  # fmt: skip
    """Make the stage. Raises ConfigError for a policy or a site's file that cannot be used."""
    book = policy.load(Path(settings.policy) if settings.policy else None)
    domains = site.load(Path(settings.site)) if settings.site else {}
    kept = Kept(records)
    kept.load()

    hands = SafeHands(
        kept=kept, executor=executor, saves=Saving(saves), judge=safety.authorise, note=journal.note,
        keep_evidence=Evidence(state / "evidence", senses.snapshot).keep,
        clean_wait_base_s=float(settings.clean_wait), approval_s=float(settings.approval_expires),
    )  # fmt: skip
    hands.load()
    return Repair(
        desk=RepairDesk(book, hands), settings=settings, domains=domains, scheduler=senses.scheduler,
        fence=senses.fence, paused=senses.paused,
        journal_has_all=lambda: not journal.waiting,
    )  # fmt: skip
