"""What each part of the day usually reads, series by series: the season of a forecast.

Folded once a visit: the mean of the visit moves the profile by the weight of a day. It speaks once every part
was seen on two days, so a first Saturday is judged without it.
Source: Winters 1960, with the mean of a visit in the place of the reading.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.series_state import Array

_SECOND: Final = 1_000_000_000
_DAY_S: Final = 86400
_DAYS: Final = 2
DAILY: Final = frozenset({"profile", "visits"})


def fields(bins: int) -> dict[str, tuple[str, object, tuple[int, ...]]]:
    """The state's arrays; bins 0 is a day without parts, which never speaks."""
    return {
        "profile": ("f4", 0.0, (bins,)), "visits": ("u1", 0, (bins,)), "bin": ("i2", -1, ()),
        "visit_mean": ("f8", 0.0, ()), "visit_count": ("i8", 0, ()),
    }  # fmt: skip


def at(state: dict[str, Array], time_ns: int) -> tuple[Array, NDArray[np.bool_]]:
    """What is usual at this time of day [S], and for which series that is known [S]."""
    profile, visits = state["profile"], state["visits"]
    if not profile.shape[1]:
        return np.zeros(len(profile)), np.zeros(len(profile), dtype=bool)
    slot = _slot(time_ns, profile.shape[1])
    return profile[:, slot].astype(np.float64), visits.min(axis=1) >= _DAYS


def move(
    state: dict[str, Array], rows: NDArray[np.int64], values: Array, time_ns: int, weight: float
) -> None:
    """Take one reading of each of `rows`; a visit that ended is folded into the profile."""
    bins = state["profile"].shape[1]
    if not bins:
        return
    slot = _slot(time_ns, bins)
    entered = rows[state["bin"][rows] != slot]
    if len(entered):
        _fold(state, entered[state["bin"][entered] >= 0], weight)
        state["bin"][entered], state["visit_count"][entered] = slot, 0
    state["visit_count"][rows] += 1
    gap = np.clip(values[rows], -1e30, 1e30) - state["visit_mean"][rows]
    state["visit_mean"][rows] += gap / state["visit_count"][rows]


def _fold(state: dict[str, Array], rows: NDArray[np.int64], weight: float) -> None:
    slots = state["bin"][rows].astype(np.int64)
    before, visits = state["profile"][rows, slots], state["visits"][rows, slots]
    share = np.where(visits == 0, 1.0, weight)
    state["profile"][rows, slots] = before + share * (state["visit_mean"][rows] - before)
    state["visits"][rows, slots] = np.minimum(visits, np.iinfo(np.uint8).max - 1) + 1


def _slot(time_ns: int, bins: int) -> int:
    return int(time_ns // _SECOND % _DAY_S * bins // _DAY_S)
