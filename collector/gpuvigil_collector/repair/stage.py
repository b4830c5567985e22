"""Repair as one stage of the tick: the state of the fleet, the work of the desk, rows for readers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gpuvigil_collector.action import Action, Fence, FleetState, Verdict
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.desk import RepairDesk
from gpuvigil_collector.repair.fleet import SchedulerView, Sources, with_fleet
from gpuvigil_collector.repair.marks import Marks
from gpuvigil_collector.repair.needs import Scenery
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.tended import HeldNode
from gpuvigil_detectors.base import NodeFact
from gpuvigil_detectors.training.jobs import Job

_LEAP_NS: Final = 5_000_000_000
_DAY_NS: Final = 86400 * 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairView:
    """What readers see of repair after a tick. Copies: nothing of it changes any more."""

    mode: str = "observe"
    marks: Marks | None = None
    cases: tuple[Case, ...] = ()
    actions: tuple[Action, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    decisions: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    fence: Fence | None = None
    fault: str = ""


@dataclass(slots=True, kw_only=True)
class Repair:
    """One thread calls `tick`. scheduler, fence, silenced, paused are asked each tick and answer at once.

    paused: a pause that was made without us, as by a file; "" for none.
    """

    desk: RepairDesk
    settings: Remediation
    domains: Mapping[str, str]
    scheduler: Callable[[], SchedulerView | None]
    fence: Callable[[], Fence | None]
    paused: Callable[[], str]
    journal_has_all: Callable[[], bool]
    silenced: Callable[[], Mapping[str, str] | None] = dict
    view: RepairView = field(default_factory=RepairView)
    _clocks: tuple[int, int] = (0, 0)
    _leaps: list[tuple[int, int]] = field(default_factory=list)

    def tick(
        self,
        now_ns: int,
        nodes: Mapping[str, NodeFact],
        jobs: Mapping[str, Job],
        opened: Mapping[str, Incident],
    ) -> None:
        """Judge and act on what is open now."""
        view = self.scheduler()
        state = self._state(now_ns, nodes, jobs, view)
        known = frozenset(view.jobs) if view is not None else None
        scenery = Scenery(
            now_ns=now_ns, open=opened, state=state, scheduled=known,
            journal_has_all=self.journal_has_all(), scheduler_ns=view.at_ns if view is not None else 0,
        )  # fmt: skip
        self.desk.tick(scenery)
        hands = self.desk.hands
        self.view = RepairView(
            mode=self.settings.mode,
            marks=msgspec.structs.replace(self.desk.kept.marks) if self.desk.kept.marks is not None else None,
            cases=tuple(msgspec.structs.replace(case) for case in self.desk.kept.cases.values()),
            actions=tuple(hands.actions.values()),
            verdicts=dict(hands.verdicts),
            decisions=dict(hands.decisions),
            fence=state.fence,
            fault=self.desk.kept.records.fault,
        )

    def is_paused(self) -> str | None:
        """Who paused and why, "" when nobody; None when it cannot be told. Any thread may ask."""
        marks = self.desk.kept.marks
        if marks is None:
            return None
        return f"{marks.paused.by}: {marks.paused.why}" if marks.paused is not None else self.paused()

    def held(self) -> tuple[HeldNode, ...]:
        """Return the nodes that holds of ours keep out of work, but those about to be released.

        Any thread may ask.
        """
        modes, general = self.settings.partition_modes, self.settings.mode
        nodes = self.desk.hands.scenery.state.nodes or {}
        return tuple(
            HeldNode(
                node=case.node, action=case.hold, refuses=modes.get(case.partition, general) == "act",
                reachable=case.node in nodes and not nodes[case.node].silent,
                reason=f"gpuvigil: {case.fault_class} [{case.incident}]",
            )
            for case in self.view.cases
            if case.held and case.hold and not case.synthetic and not case.action.endswith("-release")
        )  # fmt: skip

    def _jumped(self, now_ns: int) -> int:
        """How far the wall clock leapt forward within the last day, by the monotonic clock."""
        steady_ns = time.monotonic_ns()
        wall, steady = self._clocks
        self._clocks = (now_ns, steady_ns)
        leap = (now_ns - wall) - (steady_ns - steady)
        if wall and leap > _LEAP_NS:
            self._leaps.append((steady_ns, leap))
        self._leaps = [one for one in self._leaps if steady_ns - one[0] < _DAY_NS]
        return sum(leap for _, leap in self._leaps)

    def _state(
        self, now_ns: int, nodes: Mapping[str, NodeFact], jobs: Mapping[str, Job], view: SchedulerView | None
    ) -> FleetState:
        marks, limits = self.desk.kept.marks, self.settings.limits.limits()
        base = FleetState(
            jumped_ns=self._jumped(now_ns),
            mode=self.settings.mode,
            partition_modes=self.settings.partition_modes,
            paused=self.is_paused(),
            past=self.desk.kept.records.past(now_ns),
            actionable=self.desk.actionable(now_ns, limits.storm_window_s),
            breaker_ns=marks.breaker_ns if marks is not None else None,
            fence=self.fence(),
            limits=limits,
        )
        sources = Sources(
            nodes=nodes, jobs=jobs, view=view, marks=marks, cases=self.desk.kept.cases.values(),
            scheduled=self.settings.scheduler in {"slurm", "kubernetes"}, domains=self.domains,
            silenced=self.silenced(),
        )  # fmt: skip
        return with_fleet(base, sources, now_ns)
