"""What both actuators of a node's agent begin with: each name is one plain name; the right to act lasts."""

from __future__ import annotations

import re
import time
from typing import Final

from gpuvigil_collector.action import ON_JOB, Action, Fence, RefusedError

# no comma, bracket, wildcard, space or leading dash: one thing, and never an option
_NAMES: Final = {
    "node": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"),
    "gpu": re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}"),
    "job": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}"),
    "incident": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"),
    "id": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,255}"),
}
_SHARE: Final = 0.49  # an effect is over well before somebody else may act
_LEAST_S: Final = 0.25


def check_names(action: Action) -> None:
    """Raise RefusedError that names the field unless node, incident, id, and gpu or job, are plain names."""
    asked = action.proposal
    needed = {"node", "incident", "id"} | ({"job"} if asked.kind in ON_JOB else set())
    needed |= {"gpu"} if asked.kind == "reset_gpu" else set()
    for key, pattern in _NAMES.items():
        text = str(getattr(asked, key))
        if (key in needed or text) and not pattern.fullmatch(text):
            raise RefusedError(f"{key}: expected one plain name, got {text[:80]!r}")


def within_s(fence: Fence, deadline_s: float) -> float:
    """Return how long an effect may take, s: the deadline, under half of what is left of the right to act.

    Raises RefusedError when that is too little to begin.
    """
    left_s = (fence.until_ns - time.time_ns()) / 1e9 * _SHARE
    if left_s < _LEAST_S:
        raise RefusedError("the right to act ends before the effect could be had")
    return min(deadline_s, left_s)
