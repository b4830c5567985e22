"""Fitting off the tick: models grow in one worker thread and are taken over at a second that was set before.

The second is fixed when the work begins, so what the fleet is told depends on the snapshots alone and never
on how fast the thread was: a replay of the same snapshots gives the same findings.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, Protocol, Self

from gpuvigil_detectors.base import Float32

_PATIENCE_S: Final = 60.0  # a replay runs faster than its own clock: it waits for the models here
_WORKER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fit")


class Voter(Protocol):
    """A model over Features: forest, or a PyOD model by name."""

    name: str

    @property
    def fitted(self) -> bool:
        """Whether it can score."""
        ...

    def fresh(self) -> Self:
        """An unfitted one with the same settings."""
        ...

    def fit(self, features: Float32) -> None:
        """Fit on healthy rows [n, K]."""
        ...

    def score(self, features: Float32) -> Float32:
        """Oddness of each row [S]."""
        ...


class Fitting:
    """At most one set of models on its way."""

    def __init__(self) -> None:
        self._coming: Future[list[Voter]] | None = None
        self._due_ns = 0

    @property
    def busy(self) -> bool:
        """Whether models are on their way."""
        return self._coming is not None

    def begin(self, voters: list[Voter], rows: Float32, due_ns: int) -> None:
        """Fit fresh models like `voters` on a copy of `rows`; `take` gives them from `due_ns` on."""
        self._due_ns = due_ns
        self._coming = _WORKER.submit(_fit, [voter.fresh() for voter in voters], rows.copy())

    def take(self, now_ns: int) -> list[Voter] | None:
        """The fitted models once they are due, None before; a tick that is late for them tries again."""
        if self._coming is None or now_ns < self._due_ns:
            return None
        wait([self._coming], timeout=_PATIENCE_S)
        if not self._coming.done():
            return None
        voters, self._coming = self._coming.result(timeout=0), None
        return voters


def _fit(voters: list[Voter], rows: Float32) -> list[Voter]:
    for voter in voters:
        voter.fit(rows)
    return voters
