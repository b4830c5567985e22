"""The hands of repair: every effect of a case goes through here, past the safety kernel, to the executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from gpuvigil_collector.action import Action, ActionState, FleetState, Kind, Proposal, Verdict
from gpuvigil_collector.audit import Decisions, operator_note, transitions
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.journal import Note
from gpuvigil_collector.policy import Step
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.needs import NOTHING, Executor, Saves, Scenery
from gpuvigil_collector.repair.propose import proposal_of, with_case
from gpuvigil_collector.repair.store import Kept
from gpuvigil_collector.repair.walk import Word

ACTIONS_MAX: Final = 5000
_TEXT_MAX: Final = 2000
_ASK_AGAIN_NS: Final = 5_000_000_000
_AGAIN_A_TICK: Final = 50  # of those that were denied; what is new is always judged at once
_SECOND_NS: Final = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class SafeHands:
    """walk.Hands for one desk. judge: safety.authorise. note: takes journal entries.

    actions and verdicts: the newest of each id, for readers and for `why`; oldest first, bounded.
    """

    kept: Kept
    executor: Executor | None
    saves: Saves
    judge: Callable[[FleetState, Proposal, int], Verdict]
    note: Callable[[list[Note]], None]
    keep_evidence: Callable[[Case, Incident | None], None]
    clean_wait_base_s: float
    approval_s: float
    actions: dict[str, Action] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    scenery: Scenery = NOTHING
    decisions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    audit: Decisions = field(default_factory=Decisions)
    _again: int = 0
    _heard: int = 0

    def load(self) -> None:
        """Take back the actions of an earlier run that cases still wait for."""
        names = [case.action for case in self.kept.cases.values() if case.action]
        found = [self.kept.records.get(name) for name in names]
        self.actions = {action.proposal.id: action for action in found if action is not None}

    def harmless(self, case: Case, kind: Kind) -> None:
        """Tell people, or keep evidence; changes nothing."""
        incident = self.scenery.open.get(case.incident)
        if kind == "capture_evidence":
            self.keep_evidence(case, incident)
        if kind == "hand_over":
            self.tell(self.scenery.now_ns, kind, case.trail[-1].what if case.trail else "", case.incident)

    def clean_wait_s(self, case: Case) -> float:
        """The clean wait, doubled for each relapse within 24 h."""
        marks = self.kept.marks
        relapses = marks.relapses(case.node, self.scenery.now_ns) if marks is not None else 0
        return self.clean_wait_base_s * float(2 ** min(relapses, 6))

    def offender(self, case: Case) -> bool:
        """Whether only a person may return this node."""
        marks = self.kept.marks
        return marks is None or marks.is_offender(case.node, self.scenery.now_ns)

    def save(self, case: Case, step: Step, job: str) -> Word:
        """Ask a job for a checkpoint, once that is allowed; then say how it goes."""
        if case.action:
            asked = self.actions.get(case.action)
            if asked is not None and asked.state in {"awaiting", "rejected", "expired"}:
                return self._stands(case, step, asked)
            return self._saved(case, self.saves.stands(self._processes(job), case.incident))
        return Word("waits", case.waits) if self._too_soon(case) else self._begin(case, step, job)

    def _saved(self, case: Case, word: Word) -> Word:
        """End the record of a request with the job's answer: nobody else does."""
        action = self.actions.get(case.action)
        if action is not None and word.progress in {"done", "failed"}:
            state: ActionState = "done" if word.progress == "done" else "failed"
            self._keep(replace(action, state=state, outcome=word.why, changed_ns=self.scenery.now_ns))
        return word

    def awaits(self, case: Case) -> bool:
        """Whether a case waits for a person, which has an end of its own."""
        return (action := self.actions.get(case.action)) is not None and action.state == "awaiting"

    def acts(self, case: Case) -> bool:
        """Whether a case's action is being carried out: it can no longer be taken back."""
        action = self.actions.get(case.action)
        return action is not None and action.state in {"intended", "issued", "ambiguous"}

    def withdraw(self, case: Case, why: str) -> None:
        """Take back what waits for a person's approval."""
        if self.awaits(case):
            waits = self.actions[case.action]
            self._keep(replace(waits, state="expired", outcome=why, changed_ns=self.scenery.now_ns))

    def _processes(self, job: str) -> str:
        """The name under which a job's own processes are asked."""
        known = (self.scenery.state.jobs or {}).get(job)
        return (known.processes if known is not None else "") or job

    def effect(self, case: Case, step: Step, job: str) -> Word:
        """Have an effect, or say how it stands."""
        if case.action:
            action = self.actions.get(case.action)
            if action is None:
                return Word("lost", f"the record of {case.action} is lost: look before anything is done")
            return self._stands(case, step, action)
        return Word("waits", case.waits) if self._too_soon(case) else self._begin(case, step, job)

    def _begin(self, case: Case, step: Step, job: str) -> Word:
        """Ask the kernel, and do what verdict and mode allow."""
        verdict, proposal = self._judged(case, step, job)
        if not verdict.allowed:
            return Word("waits", case.waits)
        saves, target = step.do == "checkpoint", job or proposal.node
        if verdict.effect == "none":
            self._decided(proposal, "would", verdict)
            would = (
                f"ask {job} for a checkpoint"
                if saves
                else f"{step.do} {target}: allowed, and the mode is observe"
            )
            return Word("would", f"would {would}")
        if not saves and (self.executor is None or step.do not in self.executor.kinds):
            self._decided(proposal, "failed", verdict)
            return Word("lost", f"nothing is configured here that can {step.do}")
        case.action = proposal.id
        if verdict.effect == "recommend" or verdict.needs_approval:
            self._decided(proposal, "awaiting", verdict)
            return Word("waits", f"a person's approval of {proposal.id}")
        self._carry_out(proposal, verdict)
        return Word(
            "waits", f"{job} was asked for a checkpoint" if saves else f"{step.do} of {target} is under way"
        )

    def _carry_out(self, proposal: Proposal, verdict: Verdict) -> Action:
        """Have an allowed effect. Checkpoints are no actuator's: the save desk asks the job's ranks."""
        if proposal.kind != "checkpoint":
            return self._submit(proposal, verdict)
        self.saves.begin(self._processes(proposal.job), proposal.incident)
        return self._decided(proposal, "issued", verdict)

    def approve(self, action_id: str, by: str, now_ns: int) -> Action:
        """Judge an action that waits for a person once more, with the approval, and have it carried out.

        Raises KeyError for one that does not wait, PermissionError with the gate that denies it now.
        """
        action = self.actions[action_id]
        if action.state != "awaiting" or self.executor is None:
            raise KeyError(action_id)
        case = self.kept.cases[action.proposal.case]
        proposal = replace(action.proposal, approved_by=by)
        verdict = self.judge(with_case(self.scenery.state, case), proposal, now_ns)
        self.verdicts[action_id] = verdict
        if not verdict.allowed or verdict.effect == "none":
            detail = next((gate.detail for gate in verdict.gates if gate.name == verdict.gate), "observe")
            raise PermissionError(f"{verdict.gate or 'mode'}: {detail}")
        self.note([operator_note(now_ns, by, "approve", action_id, proposal.incident)])
        case.step_began_ns = now_ns  # the step's own time begins now
        return self._carry_out(proposal, verdict)

    def reject(self, action_id: str, by: str, why: str, now_ns: int) -> Action:
        """Take an action that waits off the table. Raises KeyError for one that does not wait."""
        if (action := self.actions[action_id]).state != "awaiting":
            raise KeyError(action_id)
        said = f"rejected by {by}: {why}"
        self.note([operator_note(now_ns, by, "reject", f"{action_id}: {why}", action.proposal.incident)])
        return self._keep(replace(action, state="rejected", outcome=said, changed_ns=now_ns))

    def settle(
        self, action_id: str, state: Literal["done", "failed"], by: str, why: str, now_ns: int
    ) -> Action:
        """End an action that stays ambiguous as a person has seen it. Raises KeyError for any other."""
        if self.executor is None:
            raise KeyError(action_id)
        action = self.executor.settle(action_id, state, f"settled by {by}: {why}")
        said = f"{action_id} {state}: {why}"
        self.note([operator_note(now_ns, by, "settle", said, action.proposal.incident)])
        return self._remember(action)

    def tell(self, now_ns: int, what: str, detail: str, incident: str) -> None:
        """Write one entry into the journal."""
        self.note([Note(time_ns=now_ns, what=what, detail=detail[:_TEXT_MAX], incident=incident)])

    def hear(self, journal_has_all: bool) -> None:
        """Take in what became of actions; forget it once the journal has it on disk."""
        if self.executor is None:
            return
        if self._heard and journal_has_all:
            self.executor.told(self._heard)
        fresh = [told for told in self.executor.results() if told.sequence > self._heard]
        self.note(transitions(fresh))
        for told in fresh:
            self._heard = told.sequence
            if told.action.state != "awaiting" or told.action.proposal.id not in self.actions:
                self._remember(told.action)

    def _stands(self, case: Case, step: Step, action: Action) -> Word:
        now_ns, name = self.scenery.now_ns, action.proposal.id
        if action.state == "awaiting":
            if now_ns - action.decided_ns <= self.approval_s * _SECOND_NS:
                return Word("waits", f"a person's approval of {name}")
            self.tell(now_ns, "approval_expired", name, case.incident)
            self._keep(replace(action, state="expired", changed_ns=now_ns))
            return Word("rejected", f"nobody approved {name} in time")
        if action.state == "rejected":
            return Word("rejected", action.outcome)
        if action.state == "done":
            if step.do == "hold" and not case.held and self.kept.marks is not None:
                self.kept.marks.treat(case.node, now_ns)
            return Word("done", action.outcome)
        if action.state in {"failed", "denied", "expired"}:
            begun = action.state != "failed" or action.answered
            return Word("failed", action.outcome, begun=begun)
        return Word("waits", f"{step.do} of {action.proposal.job or case.node}: {action.state}")

    def _too_soon(self, case: Case) -> bool:
        """Whether a denied case waits still: a few seconds, and in a storm for its turn."""
        if not case.asked_ns:
            return False
        if self.scenery.now_ns - case.asked_ns < _ASK_AGAIN_NS or self._again >= _AGAIN_A_TICK:
            return True
        self._again += 1
        return False

    def look_at(self, scenery: Scenery) -> None:
        """Begin a tick."""
        self.scenery, self._again = scenery, 0

    def _judged(self, case: Case, step: Step, job: str) -> tuple[Verdict, Proposal]:
        """Ask the kernel; a denial is told when its gate changes, not each time."""
        now_ns, state = self.scenery.now_ns, with_case(self.scenery.state, case)
        proposal = proposal_of(case, step, job, state, self.scenery.open.get(case.incident))
        verdict = self.judge(state, proposal, now_ns)
        case.asked_ns = now_ns
        if verdict.trips_breaker and (marks := self.kept.marks) is not None and not marks.breaker_ns:
            marks.breaker_ns = now_ns
            self.tell(now_ns, "breaker_tripped", _reason(verdict), case.incident)
        if not verdict.allowed:
            case.waits = f"{verdict.gate}: {_reason(verdict)}"
            if case.denied_by != verdict.gate:
                case.denied_by = verdict.gate
                self._decided(proposal, "denied", verdict)
        return verdict, proposal

    def _submit(self, proposal: Proposal, verdict: Verdict) -> Action:
        """Hand an allowed action to the executor, which has it on disk before it returns."""
        assert self.executor is not None
        return self._remember(self.executor.submit(self._made(proposal, "intended", verdict)))

    def _decided(self, proposal: Proposal, state: ActionState, verdict: Verdict) -> Action:
        """Journal a decision with every gate's word, and keep the action."""
        return self._keep(self._made(proposal, state, verdict))

    def _made(self, proposal: Proposal, state: ActionState, verdict: Verdict) -> Action:
        now_ns, fleet = self.scenery.now_ns, self.scenery.state
        self.verdicts[proposal.id] = verdict
        self.decisions[proposal.kind, state, verdict.gate] += 1
        self.note(self.audit.note(proposal, verdict, now_ns))
        known = (fleet.nodes or {}).get(proposal.node)
        return Action(
            proposal=proposal, state=state, interrupts=verdict.interrupts, decided_ns=now_ns,
            changed_ns=now_ns,
            outcome=_reason(verdict) if state == "denied" else "",
            generation=fleet.fence.generation if fleet.fence is not None else 0,
            domain=known.domain if known else "", partition=known.partition if known else "",
        )  # fmt: skip

    def _keep(self, action: Action) -> Action:
        self.kept.records.write(action)
        return self._remember(action)

    def _remember(self, action: Action) -> Action:
        self.actions[action.proposal.id] = action
        while len(self.actions) > ACTIONS_MAX:
            oldest = next(iter(self.actions))
            del self.actions[oldest]
            self.verdicts.pop(oldest, None)
        return action


def _reason(verdict: Verdict) -> str:
    return next((gate.detail for gate in verdict.gates if gate.name == verdict.gate), "")
