"""Validation under load, by the node's own agent: begun once, then looked at until it has ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gpuvigil_collector.action import (
    Action,
    AgentCall,
    AmbiguousError,
    Answer,
    Fence,
    Kind,
    Look,
    RefusedError,
)
from gpuvigil_collector.actuators.tools import Tools, names

_CALL_S: Final = 10.0


class Validate:
    """Asks the agent; call: how."""

    name = "validate"
    kinds: frozenset[Kind] = frozenset({"validate"})
    arrives_s = 2 * _CALL_S

    def __init__(self, call: AgentCall) -> None:
        self._call = call

    def look(self, action: Action) -> Look:
        """Passed is done, never begun absent, not fit failed; what runs or cannot be asked is unknown."""
        try:
            answer = self._ask(action, "validation")
        except (AmbiguousError, RefusedError) as error:
            return Look(state="unknown", detail=str(error)[:200])
        word, _, detail = answer.outcome.partition(" ")
        if not answer.accepted or word not in {"passed", "failed", "none"}:
            return Look(state="unknown", detail=answer.outcome[:200])
        if word == "none":
            return Look(state="absent", detail="not begun")
        return Look(state="done" if word == "passed" else "failed", detail=detail)

    def apply(self, action: Action, fence: Fence) -> str:
        """Begin it. Raises RefusedError, AmbiguousError."""
        answer = self._ask(action, "validate")
        if not answer.accepted:
            raise RefusedError(answer.outcome[:300])
        return "begun"

    def _ask(self, action: Action, verb: str) -> Answer:
        found = names(action)
        return self._call(found["node"], verb, {"name": found["id"]}, _CALL_S)


def make(tools: Tools) -> Iterable[Validate]:
    """Make it where agents can be asked."""
    return [Validate(tools.agent)] if tools.agent is not None else []
