"""The desk of repair: opens a case for each incident that policy acts on and takes it forward, once a tick.

What operators say comes in by `ask` from any thread and is answered at the next tick.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from gpuvigil_collector.action import HARMLESS
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.incidents.tracker import short_id
from gpuvigil_collector.policy import Policy
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.hands import SafeHands
from gpuvigil_collector.repair.needs import Scenery
from gpuvigil_collector.repair.taken import TakenHolds
from gpuvigil_collector.repair.walk import Scene, Walk, last_sign_ns
from gpuvigil_detectors.base import FactEvent
from gpuvigil_protos import entity as names

CASES_MAX: Final = 2000
_KEPT_NS: Final = 28 * 86400 * 1_000_000_000
_SECOND_NS: Final = 1_000_000_000
_ASKED_MAX: Final = 1000


class RepairDesk:
    """One thread calls `tick`; `ask` may be called by any."""

    def __init__(self, policy: Policy, hands: SafeHands, new_id: Callable[[], str] = short_id) -> None:
        self.policy, self.hands, self.kept, self._new_id = policy, hands, hands.kept, new_id
        self._walk = Walk(policy, hands)
        self._seen = {(case.incident, case.playbook) for case in self.kept.cases.values()}
        returned = [case for case in self.kept.cases.values() if case.outcome == "returned"]
        self._returned = {case.incident: case.ended_ns for case in returned}
        self._asked: deque[tuple[Callable[[RepairDesk, int], Any], Future[Any]]] = deque()
        self._lock = threading.Lock()
        self.drills: list[FactEvent] = []
        self._proven: set[str] = set()
        self._taken = TakenHolds()
        self._tell_proven(
            list(self.kept.cases.values())
        )  # rules forget with a restart, reports are read anew

    def ask(self, what: Callable[[RepairDesk, int], Any]) -> Future[Any]:
        """Have `what` called with the desk and the time at the next tick; the future gets what it returns."""
        future: Future[Any] = Future()
        with self._lock:
            if len(self._asked) >= _ASKED_MAX:
                future.set_exception(RuntimeError("too many requests wait for the brain"))
            else:
                self._asked.append((what, future))
        return future

    def tick(self, scenery: Scenery) -> None:
        """Hear operators and the executor, open cases, take each forward, keep what changed."""
        now_ns = scenery.now_ns
        self.hands.look_at(scenery)
        self._hear(now_ns)
        self.hands.hear(scenery.journal_has_all)
        if self.kept.marks is not None:
            self.kept.marks.expire(now_ns)
        self._take_word(scenery)
        busy = {(case.node, case.synthetic) for case in self.running}
        for incident in scenery.open.values():
            self._open(incident, busy, now_ns)
        scene = Scene(
            now_ns=now_ns, open=scenery.open, jobs=self._jobs_on, troubled=self._troubled,
            movable=lambda job: scenery.scheduled is None or job in scenery.scheduled,
        )  # fmt: skip
        for case in self.running:
            self._walk.advance(case, scene)
            if case.ended:
                self._closed(case, now_ns)
        self._tell_proven(self.running)
        self._forget(now_ns)
        self.kept.save()

    @property
    def running(self) -> list[Case]:
        """Cases that have not ended, oldest first."""
        return [case for case in self.kept.cases.values() if not case.ended]

    def actionable(self, now_ns: int, window_s: float) -> tuple[tuple[str, int], ...]:
        """Faults that asked for more than words lately, for the storm breaker: (node, when)."""
        closed_ns = self.kept.marks.breaker_closed_ns if self.kept.marks is not None else 0
        since_ns = max(now_ns - int(window_s * _SECOND_NS), closed_ns)
        return tuple(
            (case.node, case.opened_ns)
            for case in self.kept.cases.values()
            if case.opened_ns >= since_ns and not case.synthetic
        )

    def take_drills(self) -> tuple[FactEvent, ...]:
        """Return what rules must hear since the last call: operators' drills, nodes that passed a test."""
        drills, self.drills = tuple(self.drills), []
        return drills

    def acts(self, playbook: str) -> bool:
        """Whether a playbook does more than tell people."""
        return any(step.do not in HARMLESS for step in self.policy.playbook[playbook].steps)

    def _hear(self, now_ns: int) -> None:
        with self._lock:
            asked = list(self._asked)
            self._asked.clear()
        for what, future in asked:
            if not future.set_running_or_notify_cancel():
                continue  # who asked has gone: what nobody hears the answer of is not done
            try:
                future.set_result(what(self, now_ns))
            except Exception as error:  # noqa: BLE001 - it is raised again where the answer is waited for
                future.set_exception(error)

    def _open(self, incident: Incident, busy: set[tuple[str, bool]], now_ns: int) -> None:
        """Begin a case where policy names a playbook that this incident has not had, or it shows anew.

        One case a node, and one drill: what is still wrong when it ends gets its own.
        """
        partition = self._partition(incident.node)
        playbook = self.policy.playbook_for(incident.fault_class, incident.severity, partition)
        key = (incident.id, playbook)
        if not incident.node or not self.acts(playbook):
            return
        if key in self._seen and not self._relapsed(incident, now_ns):
            return
        if len(self.kept.cases) >= CASES_MAX or (incident.node, incident.synthetic) in busy:
            return
        busy.add((incident.node, incident.synthetic))
        case = Case(
            id=self._new_id(), incident=incident.id, fingerprint=incident.fingerprint,
            fault_class=incident.fault_class, node=incident.node, target=incident.target,
            cause=incident.cause[:300], playbook=playbook, opened_ns=now_ns, taken=0,
            gpu=names.gpu_uuid_of(incident.target.partition("/")[2]) or "", partition=partition,
            synthetic=incident.synthetic,
        )  # fmt: skip
        self._seen.add(key)
        self._returned.pop(incident.id, None)
        self.kept.cases[case.id] = case
        detail = f"{playbook} for {incident.fault_class} on {incident.target}"
        self.hands.tell(now_ns, "case_opened", detail, incident.id)

    def _take_word(self, scenery: Scenery) -> None:
        """Let go of what somebody else has released: no budget counts it, and a person has decided."""
        for case in self._taken.look(self.kept.cases.values(), scenery, self.hands.acts):
            if not self.kept.records.no_longer_held(case.hold):
                continue  # not on disk: seen again at the next tick
            self.hands.withdraw(case, "somebody else took the hold away")
            case.held = False
            case.note(scenery.now_ns, "hold", "somebody else took our hold away")
            self.hands.tell(scenery.now_ns, "hold_taken_away", case.node, case.incident)
            if not case.ended:
                case.end("handed_over", scenery.now_ns)
                self._closed(case, scenery.now_ns)

    def _relapsed(self, incident: Incident, now_ns: int) -> bool:
        """Whether an incident that is still open shows again since its node was returned."""
        ended_ns = self._returned.get(incident.id)
        return ended_ns is not None and last_sign_ns(incident, now_ns) > ended_ns

    def _closed(self, case: Case, now_ns: int) -> None:
        if case.outcome == "returned" and self.kept.marks is not None:
            self.kept.marks.returned[case.node] = now_ns
        if case.outcome == "returned":
            self._returned[case.incident] = now_ns
        last = case.trail[-1].what if case.trail else ""
        self.hands.tell(now_ns, "case_ended", f"{case.outcome}: {last}", case.incident)

    def _partition(self, node: str) -> str:
        nodes = self.hands.scenery.state.nodes
        return nodes[node].partition if nodes is not None and node in nodes else ""

    def _jobs_on(self, node: str) -> tuple[str, ...] | None:
        """Jobs that run on a node, as far as anyone says; None while nobody can be asked.

        Last those that nobody may stop: one job is moved at a time, and who refuses must not hold up others.
        """
        state = self.hands.scenery.state
        if state.nodes is None or state.jobs is None or node not in state.nodes:
            return None
        jobs = state.jobs
        here = [job for job in state.nodes[node].jobs if job not in jobs or jobs[job].nodes]
        return tuple(sorted(here, key=lambda job: job in jobs and bool(jobs[job].refusals)))

    def _troubled(self, case: Case) -> str:
        """What else holds on a case's node that policy acts on."""
        for incident in self.hands.scenery.open.values():
            other = incident.node == case.node and incident.id != case.incident
            if other and not incident.synthetic:
                playbook = self.policy.playbook_for(incident.fault_class, incident.severity, case.partition)
                if self.acts(playbook):
                    return f"{incident.fault_class} on {incident.target} [{incident.id}]"
        return ""

    def _tell_proven(self, cases: list[Case]) -> None:
        """Tell rules once of each test that passed: what was reported before it is over, however sticky."""
        for case in cases:
            if case.proven_ns and case.id not in self._proven and not case.synthetic:
                self._proven.add(case.id)
                self.drills.append(
                    FactEvent(
                        node=case.node, time_ns=case.proven_ns, kind="proven", origin="agent",
                        entity=names.NODE, text=f"passed its test, case {case.id}",
                    )
                )  # fmt: skip

    def _forget(self, now_ns: int) -> None:
        """Drop cases that ended long ago, and the oldest of them beyond the bound; one that holds stays."""
        ended = [case for case in self.kept.cases.values() if case.ended and not case.held]
        many = len(self.kept.cases) - CASES_MAX // 2
        for place, case in enumerate(sorted(ended, key=lambda case: case.ended_ns)):
            if place < many or now_ns - case.ended_ns > _KEPT_NS:
                self._returned.pop(case.incident, None)
                self.kept.drop(case.id)
                self._proven.discard(case.id)
