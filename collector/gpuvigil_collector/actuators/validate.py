"""Validation under load, by the node's own agent: begun once, then asked how it stands until it has ended."""

from __future__ import annotations

import time
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

_CALL_S: Final = 10.0
_EVERY_S: Final = 2.0


class Validate:
    """Ask the agent; call: how."""

    name = "validate"
    kinds: frozenset[Kind] = frozenset({"validate"})

    def __init__(self, call: AgentCall) -> None:
        self._call = call

    def look(self, action: Action) -> Look:
        """Passed is done; failed and never begun are absent; what runs or cannot be asked is unknown."""
        try:
            answer = self._ask(action, "validation")
        except (AmbiguousError, RefusedError) as error:
            return Look(state="unknown", detail=str(error))
        word, _, detail = answer.outcome.partition(" ")
        if not answer.accepted:
            return Look(state="unknown", detail=answer.outcome)
        if word == "passed":
            return Look(state="done", detail=detail)
        return Look(state="absent" if word in {"none", "failed"} else "unknown", detail=answer.outcome)

    def apply(self, action: Action, fence: Fence) -> str:
        """Begin it and wait for its end. Raises RefusedError when the node is not fit."""
        deadline = time.monotonic() + action.proposal.deadline_s
        answer = self._ask(action, "validate")
        if not answer.accepted:
            raise RefusedError(answer.outcome)
        while time.monotonic() < deadline:
            word, _, detail = answer.outcome.partition(" ")
            if word == "passed":
                return f"passed: {detail}"
            if word in {"failed", "unknown"}:
                raise RefusedError(f"{word}: {detail}")
            time.sleep(_EVERY_S)
            try:
                answer = self._ask(action, "validation")
            except AmbiguousError:
                continue  # the agent may be restarting: it is asked again until the deadline
        raise AmbiguousError(f"{action.proposal.node}: the validation has not ended in time")

    def _ask(self, action: Action, verb: str) -> Answer:
        return self._call(action.proposal.node, verb, {"name": action.proposal.id}, _CALL_S)
