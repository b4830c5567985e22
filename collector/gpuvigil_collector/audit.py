"""Decisions, transitions and what operators wrote, as entries of the journal's hash chain."""

from __future__ import annotations

import json
from typing import Final

from gpuvigil_collector.action import Proposal, Verdict
from gpuvigil_collector.action_store import Told
from gpuvigil_collector.journal import Note

_REMEMBERED_MAX: Final = 10_000
_TEXT_MAX: Final = 500


class Decisions:
    """Turns verdicts into entries: one for each change of a proposal's verdict, with every gate's numbers.

    The brain asks for the same step on each tick; the same answer again is counted, and told with the next
    one that differs. After a restart each is told once more.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[tuple[object, ...], int]] = {}

    def note(self, proposal: Proposal, verdict: Verdict, now_ns: int) -> list[Note]:
        """Return the entry, none when nothing has changed but the numbers."""
        key = (verdict.allowed, verdict.gate, verdict.effect, verdict.needs_approval, proposal.approved_by)
        last, times = self._last.pop(proposal.id, (None, 0))
        self._last[proposal.id] = (key, times + 1 if key == last else 0)
        while len(self._last) > _REMEMBERED_MAX:
            del self._last[next(iter(self._last))]
        if key == last:
            return []
        what = "action_allowed" if verdict.allowed else "action_denied"
        return [
            Note(time_ns=now_ns, what=what, incident=proposal.incident, detail=_of(proposal, verdict, times))
        ]


def transitions(told: list[Told]) -> list[Note]:
    """One entry for each transition of an action; number is its own, so that one told twice can be seen."""
    return [_transition(one) for one in told]


def operator_note(now_ns: int, who: str, what: str, why: str, incident: str = "") -> Note:
    """An operator's write: pause, approval, mark, breaker closed, mode changed."""
    return Note(
        time_ns=now_ns,
        what=f"operator_{what}",
        incident=incident,
        detail=_json({"who": who[:_TEXT_MAX], "why": why[:_TEXT_MAX]}),
    )


def _of(proposal: Proposal, verdict: Verdict, repeated: int) -> str:
    return _json(
        {
            "action": proposal.id,
            "case": proposal.case,
            "step": f"{proposal.playbook}/{proposal.step} {proposal.kind}",
            "node": proposal.node,
            "gpu": proposal.gpu,
            "job": proposal.job,
            "fault_class": proposal.fault_class,
            "evidence": [f"{one.origin}:{one.rule}" for one in proposal.evidence[:50]],
            "effect": verdict.effect,
            "gate": verdict.gate,
            "needs_approval": verdict.needs_approval,
            "approved_by": proposal.approved_by,
            "gates": [[one.name, one.passed, one.detail[:_TEXT_MAX]] for one in verdict.gates],
            "the_one_before_repeated": repeated,
        }
    )


def _transition(one: Told) -> Note:
    action, asked = one.action, one.action.proposal
    detail = {
        "action": asked.id,
        "number": one.sequence,
        "kind": asked.kind,
        "node": asked.node,
        "gpu": asked.gpu,
        "job": asked.job,
        "actuator": action.actuator,
        "generation": action.generation,
        "before": action.before,
        "outcome": action.outcome,
    }
    return Note(
        time_ns=action.changed_ns,
        what=f"action_{action.state}",
        incident=asked.incident,
        detail=_json(detail),
    )


def _json(told: dict[str, object]) -> str:
    return json.dumps({key: value for key, value in told.items() if value not in ("", [], False, 0)})
