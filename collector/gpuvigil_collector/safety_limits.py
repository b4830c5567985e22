"""The safety limits of DESIGN §7, and the check that each is within its range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from .safety_values import Unknown, shown

_AT_LEAST_ONE: Final = frozenset({"unavailable_max", "storm_nodes", "storm_domains", "silent_nodes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The safety limits (DESIGN: budgets, breaker, blind spot). Shares are 0 to 1, times are seconds."""

    jobs_an_hour: int = 1
    gpus_share_an_hour: float = 0.01
    job_stops_an_hour: int = 1
    job_stops_a_day: int = 3
    job_gpus_without_approval: int = 64
    unavailable_share: float = 0.05
    unavailable_max: int = 10
    domain_pause_s: float = 1800.0
    node_attempts_a_day: int = 3
    storm_nodes: int = 3
    storm_share: float = 0.10
    storm_domains: int = 2
    storm_window_s: float = 600.0
    silent_nodes: int = 2
    silent_share: float = 0.20


def _in_range(name: str, value: object) -> bool:
    if name.endswith("_s"):
        return type(value) in (int, float) and math.isfinite(value) and value >= 0  # type: ignore[arg-type,operator]
    if "share" in name:
        return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]
    return type(value) is int and value >= (name in _AT_LEAST_ONE)


def checked_limits(limits: Limits) -> Limits:
    """Return the limits; raises Unknown for one out of its range."""
    if type(limits) is not Limits:
        raise Unknown("the limits are not known")
    for name in Limits.__slots__:
        if not _in_range(name, getattr(limits, name)):
            raise Unknown(f"limit {name} is {shown(getattr(limits, name))}: out of range")
    return limits
