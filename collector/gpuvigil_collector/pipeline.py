"""One tick of the brain: a list of stages, built in one place, each with one signature.

snapshot -> structural -> rules -> training -> saves -> goodput -> statistical -> incidents -> repair
-> retire -> journal -> export
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from gpuvigil_collector.anchor import Anchor
from gpuvigil_collector.export.counts import Counts
from gpuvigil_collector.export.jobs import job_view
from gpuvigil_collector.export.recent import Recent, totals_of
from gpuvigil_collector.export.view import View
from gpuvigil_collector.goodput.books import Books
from gpuvigil_collector.incidents.tracker import Change, Tracker
from gpuvigil_collector.ingest import frames
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.learned import Learned
from gpuvigil_collector.repair.calls import AgentCalls
from gpuvigil_collector.repair.doubt import believed
from gpuvigil_collector.repair.stage import Repair
from gpuvigil_collector.retire import Retire
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_collector.saves.evidence import EvidenceDesk
from gpuvigil_collector.saves.foresight import Foresight
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import FactDetector, Finding, Snapshot
from gpuvigil_detectors.training.stage import Training

_TOUCH_EVERY_NS = 10_000_000_000  # how stale an open incident's "last seen" may be on disk


class StoreReader(Protocol):
    """What the brain reads from the store (store.py); any thread may call ledger and counters."""

    def snapshot(self, now_ns: int) -> Snapshot:
        """One view of the fleet; drains the events that came since the last one."""
        ...

    def mark_judged(self) -> None:
        """Note that the newest snapshot's events are judged and what came of them is journaled."""
        ...

    def wait_events(self, timeout_s: float) -> bool:
        """Wait until an event came; False when the time was up first."""
        ...

    def results(self) -> list[frames.Result]:
        """What agents made of commands since the last call."""
        ...

    def ledger(self) -> list[dict[str, object]]:
        """Delivery ledger, one row a node, boot and class."""
        ...

    def counters(self) -> dict[str, float]:
        """Ingest counters for the metrics endpoint."""
        ...


@dataclass(slots=True, kw_only=True)
class Tick:
    """What the stages hand down the line. urgent: an event asked for this tick, no new second has come."""

    now_ns: int
    urgent: bool
    snapshot: Snapshot
    findings: list[Finding] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


Stage = tuple[str, Callable[[Tick], None]]


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """The stages and what they share. `run` is called by one thread; `view` may be read by any."""

    store: StoreReader
    structural: FactDetector
    rules: FactDetector
    training: Training
    books: Books
    desk: SaveDesk
    evidence: EvidenceDesk
    foresight: Foresight | None
    calls: AgentCalls
    repair: Repair
    learned: Learned | None
    tracker: Tracker
    journal: Journal
    retire: Retire
    counts: Counts
    view: View
    anchor: Anchor | None = None
    _stages: list[Stage] = field(init=False)
    _statistical_findings: list[Finding] = field(default_factory=list)
    _touched_ns: int = 0
    _recent: Recent = field(default_factory=Recent)

    def __post_init__(self) -> None:
        self._stages = [
            ("structural", self._judge(self.structural)),
            ("rules", self._judge(self.rules)),
            ("training", self._judge(self.training)),
            ("saves", self._save),
            ("goodput", self._account),
            ("statistical", self._judge_statistically),
            ("incidents", self._track),
            ("repair", self._repair),
            ("retire", self._retire),
            ("journal", self._write),
            ("export", self._publish),
        ]

    def run(self, now_ns: int, *, urgent: bool) -> View:
        """Run one tick. A stage that raises is a bug: it ends the collector, and systemd starts it again."""
        start = time.perf_counter()
        tick = Tick(now_ns=now_ns, urgent=urgent, snapshot=self.store.snapshot(now_ns))
        tick.snapshot.events += self.repair.desk.take_drills()
        self.counts.stage_seconds.labels("snapshot").observe(time.perf_counter() - start)
        for name, stage in self._stages:
            began = time.perf_counter()
            stage(tick)
            self.counts.stage_seconds.labels(name).observe(time.perf_counter() - began)
        self.counts.tick_seconds.observe(time.perf_counter() - start)
        return self.view

    @staticmethod
    def _judge(detector: FactDetector) -> Callable[[Tick], None]:
        def stage(tick: Tick) -> None:
            tick.findings += detector.tick(tick.snapshot)

        return stage

    def _save(self, tick: Tick) -> None:
        jobs = self.training.jobs.by_name
        if self.foresight is not None:
            self.foresight.tick(self.tracker.open.values(), jobs.values())
        results = self.calls.take(self.store.results())
        self.desk.tick(tick.snapshot, jobs, results, self.training.hung)
        self.evidence.tick(tick.now_ns, jobs, self.training.suspected(), results)

    def _account(self, _tick: Tick) -> None:
        self.books.tick(self.training.jobs.by_name.values(), self.training.slowdown)

    def _judge_statistically(self, tick: Tick) -> None:
        """Statistics look at whole seconds: an urgent tick between two keeps what the last one found."""
        if self.learned is not None and not tick.urgent:
            self._statistical_findings = self.learned.detector.tick(tick.snapshot)
            self.learned.save_when_due()
        tick.findings += self._statistical_findings

    def _track(self, tick: Tick) -> None:
        self.counts.count_events(tick.snapshot)
        self.counts.count_findings(tick.findings)
        marks = self.repair.desk.kept.marks
        if marks is not None:
            tick.findings = believed(tick.findings, marks.false_positives, tick.now_ns)
        tick.changes = self.tracker.tick(tick.findings, Topology(tick.snapshot.nodes), tick.now_ns)
        self.journal.note(tick.changes)  # before what repair says of them
        if self.learned is not None:
            quiet = set(marks.maintenance) if marks is not None else set()
            self.learned.detector.mask(_entities(self.tracker) | quiet)

    def _repair(self, tick: Tick) -> None:
        self.repair.tick(tick.now_ns, tick.snapshot.nodes, self.training.jobs.by_name, self.tracker.open)

    def _retire(self, tick: Tick) -> None:
        self.journal.note(self.retire.tick(tick.snapshot.nodes, tick.now_ns))

    def _write(self, tick: Tick) -> None:
        due = tick.now_ns - self._touched_ns >= _TOUCH_EVERY_NS
        if due:
            self._touched_ns = tick.now_ns
        self.journal.record([], self.tracker.open.values() if due else ())
        if not self.journal.waiting:
            self.store.mark_judged()
        if self.anchor is not None and self.journal.on_disk and self.anchor.due(tick.now_ns):
            self.anchor.export(self.journal.anchored(tick.now_ns))

    def _publish(self, tick: Tick) -> None:
        self.counts.count_changes(tick.changes)
        self.view = replace(
            self.view,
            now_ns=tick.now_ns,
            ticks=self.view.ticks + 1,
            snapshot=tick.snapshot,
            nodes=tick.snapshot.nodes,
            open=dict(self.tracker.open),
            resolved=dict(self.tracker.resolved),
            jobs=tuple(
                job_view(job, self.desk.newest.get(name), self.desk.of_job(name))
                for name, job in self.training.jobs.by_name.items()
            ),
            # one that has ended never changes again
            saves=tuple(one if one.ended else replace(one) for one in self.desk.requests.values()),
            repair=self.repair.view,
            goodput=self.books.views(
                tick.now_ns, [*self.tracker.open.values(), *self.tracker.resolved.values()]
            ),
            not_opened=self.tracker.not_opened,
            lately=self._recent.note(tick.now_ns, totals_of(self.store.counters(), self.tracker.not_opened)),
            learning=self.learned.detector.status() if self.learned is not None else {},
            journal_fault=self.journal.fault or (self.anchor.fault if self.anchor is not None else ""),
            journal_failures=self.journal.failures,
            journal_entries=self.journal.written,
            journal_sequence=self.journal.sequence,
            journal_head=self.journal.head,
        )


def _entities(tracker: Tracker) -> set[str]:
    """Every entity that an open incident speaks of: nothing is learned from them."""
    return {entity for incident in tracker.open.values() for _, entity in incident.members}
