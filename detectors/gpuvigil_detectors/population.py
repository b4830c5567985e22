"""One kind of entity (GPUs, nodes) through features, voters, pools and decision, with its own learning.

Timetable of `learn_s`: rows are gathered for the first half, then the models are fitted; the third quarter
scales each voter, the last calibrates their sum. Fitted models are kept for `refit_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors import models
from gpuvigil_detectors.base import Float32, Snapshot, Window
from gpuvigil_detectors.decide import Decide, Limits, Pool
from gpuvigil_detectors.features import Features, FeatureTable
from gpuvigil_detectors.fitting import Fitting, Voter
from gpuvigil_detectors.forecast import Forecast
from gpuvigil_detectors.forest import Forest
from gpuvigil_detectors.series_state import Array, SeriesState, rows_of, take

_SECOND: Final = 1_000_000_000
_LATE_S: Final = 2  # columns that may still be filled
_COLUMNS_MAX: Final = 5
RESERVOIR: Final = 4096
_WORST: Final = 3
_ROWS_MIN: Final = 256


class Stored(Protocol):
    """A model that is arrays: it can be written down and read back."""

    def dump(self) -> bytes:
        """As bytes."""
        ...

    def load(self, data: bytes) -> None:
        """Take over what `dump` gave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Seconds: how long to learn first, how long models live; each row is scored every `rotation` ticks.

    lead_s: how long before they are needed models begin to be fitted, an eighth of learn_s at most.
    """

    learn_s: float = 3600.0
    refit_s: float = 86400.0
    rotation: int = 10
    lead_s: float = 60.0


class Population:
    """Features, voters and alarms of one kind of entity."""

    def __init__(
        self, metrics: tuple[str, ...], voters: list[Voter], times: Timetable, limits: Limits, seed: int
    ) -> None:
        self.table = FeatureTable(metrics)
        self.voters, self._times = voters, times
        self.forecasts = {metric: Forecast() for metric in metrics}
        names = [*(voter.name for voter in voters), "forecast"]
        self.pools = {name: Pool(seed=seed + place) for place, name in enumerate(names)}
        self.total = Pool(seed=seed + len(names))
        self.decide = Decide(limits)
        self._pending = SeriesState(**dict.fromkeys((*names, "total"), ("f8", np.nan, ())))
        self.rows: Float32 = np.empty((0, len(self.table.names)), dtype=np.float32)
        self.fitted_ns = 0
        self._fitting = Fitting()
        self._rng = np.random.default_rng(seed)
        self._scored_s = 0
        self.features: Features | None = None
        self.p_values: NDArray[np.float64] = np.empty(0)
        self.votes: dict[str, NDArray[np.float64]] = {}

    def calibrated(self, now_ns: int, start_ns: int) -> bool:
        """Whether its p-values mean something."""
        return self.total.ready and now_ns - start_ns >= self._times.learn_s * _SECOND

    def ready_ns(self, now_ns: int, start_ns: int) -> int:
        """When it will be calibrated, as far as its own pace so far tells; 0 when it has no entity at all."""
        if self.features is None or not self.features.entities:
            return 0
        planned_ns = start_ns + int(self._times.learn_s * _SECOND)
        missing = self.total.least - len(self.total.values)
        a_second = len(self.features.entities) / self._times.rotation
        return planned_ns if missing <= 0 else max(planned_ns, now_ns + int(missing / a_second * _SECOND))

    def tick(self, snapshot: Snapshot, start_ns: int, masked: frozenset[str]) -> None:
        """Update features and forecasts; score some of the rows; learn from what is not masked or alarmed."""
        second = snapshot.now_ns // _SECOND
        if second <= self._scored_s:
            return  # woken early by an event: the grid has no new column
        new = min(_COLUMNS_MAX, second - self._scored_s) if self._scored_s else 1
        self._scored_s = second
        masked |= self.decide.suspects(snapshot.now_ns)
        features = self.features = self.table.update(snapshot, masked)
        worst = self._forecast(snapshot, features.entities, new, masked)
        turn = np.arange(len(features.entities)) % self._times.rotation == second % self._times.rotation
        rows = np.flatnonzero(turn)
        healthy = np.array([features.entities[row] not in masked for row in rows], dtype=bool)
        self._gather(features.values[rows][healthy] if len(rows) else features.values[:0])
        self._fit_when_due(snapshot.now_ns, start_ns)
        self._judge(features, rows, healthy, worst, snapshot.now_ns, start_ns)

    def dump(self) -> models.Arrays:
        """What was learned: rows, pools, histories, models that are arrays themselves."""
        out: models.Arrays = {"rows": self.rows, "fitted_ns": np.array([self.fitted_ns])}
        out["entities"] = np.array(self.table.state.entities, dtype=np.str_)
        out |= {f"table/{name}": array for name, array in self.table.state.arrays.items()}
        for name, pool in self._named_pools().items():
            out[f"pool/{name}"], out[f"seen/{name}"] = pool.values, np.array([pool.seen])
        for name, part in self._own_models().items():
            out[f"model/{name}"] = np.frombuffer(part.dump(), dtype=np.uint8)
        return out

    def load(self, stored: models.Arrays) -> None:
        """Take over what `dump` gave. Raises ModelError when a part is missing or of another shape."""
        try:
            rows, entities = stored["rows"], tuple(stored["entities"].tolist())
            table = {name: stored[f"table/{name}"] for name in self.table.state.arrays}
            pools = {name: (stored[f"pool/{name}"], stored[f"seen/{name}"]) for name in self._named_pools()}
            parts = {name: stored[f"model/{name}"].tobytes() for name in self._own_models()}
            fitted_ns = int(stored["fitted_ns"][0])
        except KeyError as error:
            raise models.ModelError(f"population: expected {error}, got nothing: learn afresh") from None
        shapes = {name: (len(entities), *array.shape[1:]) for name, array in self.table.state.arrays.items()}
        if rows.shape[1:] != self.rows.shape[1:] or any(table[n].shape != shapes[n] for n in table):
            raise models.ModelError("population: other metrics than this program's: learn afresh")
        for name, part in self._own_models().items():
            part.load(parts[name])
        self.rows, self.fitted_ns = rows, fitted_ns
        self.table.state.entities, self.table.state.arrays = entities, table
        for name, pool in self._named_pools().items():
            pool.values, pool.seen = pools[name][0], int(pools[name][1][0])
        for voter in self.voters:
            if fitted_ns and not voter.fitted:
                voter.fit(rows)

    def _named_pools(self) -> dict[str, Pool]:
        return self.pools | {"total": self.total}

    def _own_models(self) -> dict[str, Stored]:
        own: dict[str, Stored] = {f"forecast/{metric}": part for metric, part in self.forecasts.items()}
        return own | {v.name: v for v in self.voters if isinstance(v, Forest)}

    def _forecast(
        self, snapshot: Snapshot, entities: tuple[str, ...], new: int, masked: frozenset[str]
    ) -> NDArray[np.float64]:
        """Mean of each entity's worst forecast residuals, in sigmas; NaN where no metric has an opinion."""
        columns = []
        for metric, forecast in self.forecasts.items():
            window = _settled(snapshot.window(metric, new + _LATE_S), masked)
            scores = forecast.score(window, new)
            forecast.learn(window)
            newest = np.where(np.isfinite(scores), scores, -np.inf).max(axis=1, initial=-np.inf)
            odd = np.where(np.isfinite(newest), newest, np.nan)
            columns.append(take(odd, rows_of(window.entities, entities), np.nan))
        return worst_mean(np.stack(columns, axis=1))

    def _gather(self, rows: Float32) -> None:
        """Keep a bounded sample of healthy rows, the newest likelier than the oldest."""
        whole = rows[np.isfinite(rows).all(axis=1)]
        room = RESERVOIR - len(self.rows)
        self.rows = np.concatenate([self.rows, whole[:room]])
        rest = whole[max(room, 0) :][:RESERVOIR]
        if len(rest):
            self.rows[self._rng.choice(RESERVOIR, len(rest), replace=False)] = rest

    def _fit_when_due(self, now_ns: int, start_ns: int) -> None:
        times, fitted = self._times, self._fitting.take(now_ns)
        if fitted is not None:
            self.voters, self.fitted_ns = fitted, now_ns
        lead_s = min(times.lead_s, times.learn_s / 8)
        first = self.fitted_ns == 0 and now_ns - start_ns >= (times.learn_s / 2 - lead_s) * _SECOND
        again = self.fitted_ns > 0 and now_ns - self.fitted_ns >= times.refit_s * _SECOND
        if (first or again) and len(self.rows) >= _ROWS_MIN and not self._fitting.busy:
            self._fitting.begin(self.voters, self.rows, now_ns + int(lead_s * _SECOND))

    def _judge(
        self, features: Features, rows: NDArray[np.int64], healthy: NDArray[np.bool_],
        worst: NDArray[np.float64], now_ns: int, start_ns: int,
    ) -> None:  # fmt: skip
        raw: dict[str, Array] = {
            voter.name: voter.score(features.values[rows]) for voter in self.voters if voter.fitted
        }
        raw["forecast"] = worst[rows]
        learned = (now_ns - start_ns) / _SECOND / self._times.learn_s if self._times.learn_s else 1.0
        self._pending.align(features.entities)
        if self.fitted_ns:
            for name, scores in raw.items():
                self._learn_late(self.pools[name], name, rows, healthy, scores)
        scaled = [self.pools[name].scaled(np.asarray(scores)) for name, scores in raw.items()]
        self.votes = {
            name: _spread(part, rows, len(features.entities)) for name, part in zip(raw, scaled, strict=True)
        }
        sums = np.mean(scaled, axis=0) if self.fitted_ns else np.full(len(rows), np.nan)
        if learned >= 0.75 and self.fitted_ns:
            self._learn_late(self.total, "total", rows, healthy, sums)
        judged = (
            self.total.p_values(sums) if self.calibrated(now_ns, start_ns) else np.full(len(rows), np.nan)
        )
        self.p_values = _spread(judged, rows, len(features.entities))
        self.decide.update(features.entities, self.p_values, now_ns)

    def _learn_late(
        self, pool: Pool, name: str, rows: NDArray[np.int64], healthy: NDArray[np.bool_], scores: Array
    ) -> None:
        """Add each row's score of its last turn, unless something came of it; keep this one for the next."""
        waiting = self._pending[name]
        pool.add(waiting[rows][healthy])
        waiting[rows] = scores


def worst_mean(scores: Array) -> NDArray[np.float64]:
    """Mean of the worst three of each row's scores [S, M]; NaN where none has an opinion."""
    ranked = -np.sort(-np.nan_to_num(scores, nan=-1.0), axis=1)[:, :_WORST]
    spoken = (ranked >= 0).sum(axis=1)
    mean = np.where(ranked >= 0, ranked, 0.0).sum(axis=1) / np.maximum(spoken, 1)
    return np.where(spoken > 0, mean, np.nan)


def _spread(part: Array, rows: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    out = np.full(size, np.nan)
    out[rows] = part
    return out


def _settled(window: Window, masked: frozenset[str]) -> Window:
    """The columns that can no longer change; masked entities are not learnable."""
    learnable = window.learnable[:, :-_LATE_S].copy()
    if masked:
        learnable[[row for row, name in enumerate(window.entities) if name in masked]] = False
    return Window(
        metrics=window.metrics, entities=window.entities, time_ns=window.time_ns[:-_LATE_S],
        values=window.values[:, :, :-_LATE_S], learnable=learnable,
    )  # fmt: skip
