"""What the actuators are made from, and the check of names that every one of them begins with."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from gpuvigil_collector.action import ON_JOB, Action, AgentCall, RefusedError
from gpuvigil_collector.actuator_config import ActuatorSettings
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_collector.tended import HeldNode

# no comma, bracket, wildcard, space: one thing to every scheduler; no leading dash: never an option
_NAMES: Final = {
    "node": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"),
    "gpu": re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}"),
    "job": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}"),
    "incident": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"),
    "id": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,255}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What an actuator may be made from. slurm: set where Slurm starts the work on the nodes.

    held: the nodes that are kept out of work now; None while that is not known, or nothing may be done.
    """

    settings: ActuatorSettings = field(default_factory=ActuatorSettings)
    agent: AgentCall | None = None
    slurm: SlurmSettings | None = None
    held: Callable[[], Sequence[HeldNode] | None] = lambda: None
    now_ns: Callable[[], int] = time.time_ns


class ToolFields(TypedDict, total=False):
    """The fields of Tools, for whoever may not import this package."""

    settings: ActuatorSettings
    agent: AgentCall | None
    slurm: SlurmSettings | None
    held: Callable[[], Sequence[HeldNode] | None]


def names(action: Action) -> dict[str, str]:
    """Return node, gpu, job, incident and id of an action, each checked; gpu and job "" where it has none.

    Raises RefusedError that names the field: a wildcard, list, option or control character is no name.
    """
    asked = action.proposal
    found = {key: str(getattr(asked, key)) for key in _NAMES}
    needed = {"node", "incident", "id"} | ({"job"} if asked.kind in ON_JOB else set())
    needed |= {"gpu"} if asked.kind == "reset_gpu" else set()
    for key, pattern in _NAMES.items():
        if (key in needed or found[key]) and not pattern.fullmatch(found[key]):
            raise RefusedError(f"{key}: expected one plain name, got {found[key][:80]!r}")
    return found
