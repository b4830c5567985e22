"""An event on the agent's side: a fact that is sent at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EventKind = Literal[
    "xid", "sxid", "kernel", "gpu_lost", "gpu_returned", "driver_stuck", "driver_recovered",
    "driver_crashed", "recovery_action", "agent", "hook", "rank_up", "rank_down", "collectives", "checkpoint",
]  # fmt: skip
Origin = Literal["driver", "kernel_log", "agent", "job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """kind and origin are the wire's words; entity is local (`gpu:GPU-5d1b`, `node`); time_ns is wall time.

    text is for people (a kernel line, a sentence); fields carries what was parsed: pci, link, call, seconds.
    """

    time_ns: int
    kind: EventKind
    origin: Origin
    entity: str
    code: int = 0
    text: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    synthetic: bool = False
