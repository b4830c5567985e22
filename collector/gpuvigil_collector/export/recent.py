"""What went wrong lately: totals that grew within the last ten minutes. Health is about now, not for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

WINDOW_NS: Final = 600 * 1_000_000_000
_EVERY_NS: Final = 10 * 1_000_000_000
LATELY: Final = "in the last 10 min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Sequences that never arrived, messages refused, findings that opened no incident."""

    gaps: int = 0
    refused: int = 0
    not_opened: int = 0

    def since(self, before: Losses) -> Losses:
        """Return how much was added; a total that fell began anew."""
        return Losses(
            gaps=max(0, self.gaps - before.gaps),
            refused=max(0, self.refused - before.refused),
            not_opened=max(0, self.not_opened - before.not_opened),
        )


def totals_of(counters: Mapping[str, float], not_opened: int) -> Losses:
    """Sum the ingest counters, which speak of this run alone: no restart makes old losses new ones."""

    def total(name: str) -> int:
        return int(sum(value for key, value in counters.items() if key.partition(":")[0] == name))

    return Losses(
        gaps=total("gap_sequences_total"), refused=total("refused_total"), not_opened=not_opened
    )  # fmt: skip


class Recent:
    """Totals every ten seconds of the last ten minutes. The brain's thread alone."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, Losses]] = deque()

    def note(self, now_ns: int, totals: Losses) -> Losses:
        """Take this instant's totals; return what the window added."""
        if not self._seen or now_ns - self._seen[-1][0] >= _EVERY_NS:
            self._seen.append((now_ns, totals))
        while len(self._seen) > 1 and now_ns - self._seen[1][0] >= WINDOW_NS:
            self._seen.popleft()
        return totals.since(self._seen[0][1])
