"""From answers a tick to a state that holds: how long yes before it counts, how long no before it clears."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.series_state import SeriesState

_SECOND: Final = 1_000_000_000


class Persistence:
    """Active once the answer was yes for `for_s` (gaps up to `gap_s` forgiven), until no for `clear_s`.

    Unknown neither raises nor clears; without any known answer for `hold_s` an active row is let go.
    """

    def __init__(self, *, for_s: float, gap_s: float, clear_s: float, hold_s: float) -> None:
        self._for_ns, self._gap_ns = int(for_s * _SECOND), int(gap_s * _SECOND)
        self._clear_ns, self._hold_ns = int(clear_s * _SECOND), int(hold_s * _SECOND)
        self.state = SeriesState(
            since=("i8", 0, ()), last_yes=("i8", 0, ()), last_known=("i8", 0, ()), active=("?", False, ())
        )

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which rows hold now, [S]."""
        held: NDArray[np.bool_] = self.state["active"]
        return held

    @property
    def since_ns(self) -> NDArray[np.int64]:
        """Since when each row has been yes, 0 where it is not; int64 [S]."""
        since: NDArray[np.int64] = self.state["since"]
        return since

    def update(
        self, entities: tuple[str, ...], answer: NDArray[np.int8], time_ns: NDArray[np.int64], now_ns: int
    ) -> NDArray[np.bool_]:
        """Take one tick's answers [S] and the time of each reading; return the active rows [S]."""
        self.state.align(entities)
        since, last_yes, known, active = (
            self.state[name] for name in ("since", "last_yes", "last_known", "active")
        )
        yes, no = answer == 1, answer == 0
        begins = yes & (since == 0)
        since[begins] = np.where(time_ns > 0, time_ns, now_ns)[begins]
        last_yes[yes] = now_ns
        known[answer != -1] = now_ns
        since[~active & no & (now_ns - last_yes > self._gap_ns)] = 0
        active |= yes & (now_ns - since >= self._for_ns)
        gone = (no & (now_ns - last_yes >= self._clear_ns)) | (now_ns - known >= self._hold_ns)
        since[active & gone] = 0
        active &= ~gone
        return active
