"""Asking a node's agent: a command down its stream, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an agent made of a command. accepted False: it refused, `outcome` says why."""

    accepted: bool
    outcome: str


class AgentCall(Protocol):
    """Sends one command to a node's agent and waits for its answer."""

    def __call__(self, node: str, verb: str, arguments: Mapping[str, str], deadline_s: float) -> Answer:
        """Return the answer. Raises AmbiguousError when none came in time, RefusedError when not sent."""
        ...
