"""Statistical detection as one stage: forest, forecast and further votes decide together; runways say when.

Until a population is calibrated it has no opinion, so nobody is notified by statistics; the runways notify
after their own warm-up, because a time to full can be checked by hand.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Any, Final

import numpy as np

from gpuvigil_detectors import models
from gpuvigil_detectors.base import Evidence, Finding, Snapshot
from gpuvigil_detectors.cached import Cached
from gpuvigil_detectors.decide import Limits
from gpuvigil_detectors.features import GPU_METRICS, NODE_METRICS
from gpuvigil_detectors.forest import Forest
from gpuvigil_detectors.population import Population, Timetable
from gpuvigil_detectors.runway import RESOURCES, Runway
from gpuvigil_detectors.votes import Vote

_SECOND: Final = 1_000_000_000
_KIND: Final = "statistical"
_TOP: Final = 3


class Statistical:
    """Populations of GPUs and nodes, and the runways of what can be used up."""

    name = "statistical"

    def __init__(
        self,
        *,
        votes: Iterable[str] = (),
        learn_s: float = 3600.0,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        """`votes` names PyOD models (votes.TESTED). Raises VoteError for another name or without PyOD."""
        names = tuple(dict.fromkeys(votes))
        times = Timetable(learn_s=learn_s)
        self._learn_s = learn_s
        self._populations = {
            kind: Population(
                metrics,
                [Forest(seed=seed), *(Vote(name, seed) for name in names)],
                times,
                limits or Limits(),
                seed,
            )
            for kind, metrics in (("gpu", GPU_METRICS), ("node", NODE_METRICS))
        }
        self._runways = [Runway(resource) for resource in RESOURCES]
        self._classes = _classes()
        self._masked: frozenset[str] = frozenset()
        self._start_ns = 0
        self._now_ns = 0

    def mask(self, entities: Iterable[str]) -> None:
        """Name what must not be learned from until the next call: open incidents, maintenance."""
        self._masked = frozenset(entities)

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Learn from one snapshot and return everything that holds now."""
        view = Cached(snapshot)
        self._start_ns, self._now_ns = self._start_ns or view.now_ns, view.now_ns
        found = [finding for runway in self._runways for finding in runway.tick(view)]
        for population in self._populations.values():
            population.tick(view, self._start_ns, self._masked)
            found += self._alarms(population)
        return found

    def status(self) -> dict[str, Any]:
        """learning_until_ns (None once calibrated), calibrated, and what was learned so far."""
        ready_ns = [p.ready_ns(self._now_ns, self._start_ns) for p in self._populations.values()]
        latest_ns = max([self._start_ns + int(self._learn_s * _SECOND), *ready_ns])
        until_ns = latest_ns if self._now_ns < latest_ns else None
        return {
            "learning_until_ns": until_ns if self._start_ns else None,
            "calibrated": until_ns is None and bool(self._start_ns),
            "rows": {kind: len(population.rows) for kind, population in self._populations.items()},
            "voters": [*(voter.name for voter in self._populations["gpu"].voters), "forecast"],
            "muted": sum(population.decide.muted_total for population in self._populations.values()),
        }

    def dump(self) -> bytes:
        """Everything learned, as arrays and JSON with a hash. PyOD votes are fitted again from the rows."""
        arrays: models.Arrays = {}
        for kind, population in self._populations.items():
            arrays |= {f"{kind}/{name}": array for name, array in population.dump().items()}
        return models.pack(_KIND, arrays, {"start_ns": self._start_ns})

    def load(self, data: bytes) -> None:
        """Take over what was learned before a restart. Raises ModelError; the caller then starts afresh."""
        arrays, meta = models.unpack(_KIND, data)
        for kind, population in self._populations.items():
            head = f"{kind}/"
            population.load(
                {name[len(head) :]: array for name, array in arrays.items() if name.startswith(head)}
            )
        self._start_ns = int(meta["start_ns"])

    def _alarms(self, population: Population) -> list[Finding]:
        state, muted = population.decide.state, population.decide.muted()
        return [
            self._finding(population, int(row), bool(muted[row])) for row in np.flatnonzero(state["active"])
        ]

    def _finding(self, population: Population, row: int, muted: bool) -> Finding:
        features = population.features
        assert features is not None
        entity, width = features.entities[row], len(population.table.metrics)
        distance = np.nan_to_num(features.values[row, :width])
        worst = np.argsort(-np.abs(distance))[:_TOP]
        state = population.table.state
        parts = [
            f"{population.table.metrics[column]} {distance[column]:+.1f} sigmas from its normal "
            f"{state['slow'][row, column]:.4g}"
            for column in worst
        ]
        voted = [name for name, votes in population.votes.items() if votes[row] >= 1.0]
        since_ns = int(population.decide.state["since"][row])
        metric = population.table.metrics[int(worst[0])]
        p_value = float(population.p_values[row])
        known = np.isfinite(p_value)
        return Finding(
            detector="statistical", rule="unlike_its_past", entity=entity, fault_class=self._classes[metric],
            severity="warning", start_ns=since_ns, end_ns=self._now_ns, metric=metric, notify=not muted,
            sentence=f"unlike its own past and the fleet: {'; '.join(parts)}",
            score=float(distance[worst[0]]),
            p_value=p_value if known else None,
            evidence=Evidence(
                observed=float(state["fast"][row, worst[0]]), expected=float(state["slow"][row, worst[0]]),
                since_ns=since_ns, facts=(("voted", " ".join(voted)),),
            ),
        )  # fmt: skip


def _classes() -> dict[str, str]:
    text = (
        resources.files("gpuvigil_detectors").joinpath("data", "statistical.toml").read_text(encoding="utf-8")
    )
    classes: dict[str, str] = tomllib.loads(text)["class"]
    return classes
