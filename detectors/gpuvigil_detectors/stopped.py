"""Sources that stopped while their node goes on: a GPU's readings, a host source, a frozen value.

Real GPUs that fall off the bus often show nothing else. Readings that stop for the whole node are the
agent's silence and are judged there.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gpuvigil_detectors.base import Evidence, Finding, Severity, Snapshot
from gpuvigil_detectors.catalogue import StructuralBounds
from gpuvigil_detectors.conditions import Reading, read
from gpuvigil_detectors.driver_state import DriverState
from gpuvigil_detectors.freshness import Freshness, node_of
from gpuvigil_detectors.series_state import Joins, SeriesState, take

_SECOND: Final = 1_000_000_000
_NAMES: Final = ("cores and memory", "disks", "file systems", "network interfaces")


class Stopped:
    """Compares the newest reading of every GPU and host source with the rest of its node."""

    def __init__(self, bounds: StructuralBounds) -> None:
        self._bounds = bounds
        self.gpus = Freshness(bounds.gpu_probes)
        self._sources = [Freshness(metrics) for metrics in bounds.source_probes]
        self._short_since: dict[str, int] = {}

    def findings(self, snapshot: Snapshot, driver: DriverState) -> list[Finding]:
        """Return what stopped; `gpus` is up to date afterwards."""
        for source in self._sources:
            source.update(snapshot)
        host = [source.of_nodes() for source in self._sources]
        found = self._one_gpu(snapshot, driver) + self._all_gpus(snapshot, driver, host)
        return found + self._host_sources(snapshot, host) + self._count_short(snapshot, driver)

    def _one_gpu(self, snapshot: Snapshot, driver: DriverState) -> list[Finding]:
        gpus, now_ns, bounds = self.gpus, snapshot.now_ns, self._bounds
        if not gpus.entities:
            return []
        still_ns = now_ns - gpus.newest_ns
        node_alive = now_ns - gpus.node_newest_ns[gpus.node_rows] <= bounds.fresh_s * _SECOND
        stopped = (gpus.newest_ns > 0) & (still_ns >= bounds.gpu_stopped_s * _SECOND) & node_alive
        found = []
        for row in np.flatnonzero(stopped):
            entity = gpus.entities[row]
            node = node_of(entity)
            if node in snapshot.nodes and entity not in driver.lost and not driver.troubled(node):
                since_ns, seconds = int(gpus.newest_ns[row]), float(still_ns[row]) / _SECOND
                sentence = f"no reading of this GPU for {seconds:.0f} s while its neighbours' go on: GPU lost"
                found.append(
                    _finding("gpu_stopped", "gpu_lost", entity, "critical", since_ns, now_ns, sentence)
                )
        return found

    def _all_gpus(self, snapshot: Snapshot, driver: DriverState, host: list[dict[str, int]]) -> list[Finding]:
        found, now_ns, bounds = [], snapshot.now_ns, self._bounds
        for node, newest_ns in self.gpus.of_nodes().items():
            still_ns = now_ns - newest_ns
            if newest_ns == 0 or still_ns < bounds.gpus_stopped_s * _SECOND or driver.troubled(node):
                continue
            alive = any(now_ns - source.get(node, 0) <= bounds.fresh_s * _SECOND for source in host)
            if alive and node in snapshot.nodes:
                sentence = f"no reading of any GPU for {still_ns / _SECOND:.0f} s while the host's go on"
                entity = f"{node}/node"
                found.append(
                    _finding("gpus_stopped", "driver_hang", entity, "warning", newest_ns, now_ns, sentence)
                )
        return found

    def _host_sources(self, snapshot: Snapshot, host: list[dict[str, int]]) -> list[Finding]:
        found, now_ns, bounds = [], snapshot.now_ns, self._bounds
        for name, source in zip(_NAMES, host, strict=False):
            for node, newest_ns in source.items():
                still_ns = now_ns - newest_ns
                if newest_ns == 0 or still_ns < bounds.source_stopped_s * _SECOND:
                    continue
                alive = any(now_ns - other.get(node, 0) <= bounds.fresh_s * _SECOND for other in host)
                if alive and node in snapshot.nodes:
                    sentence = f"no reading of {name} for {still_ns / _SECOND:.0f} s while others go on"
                    rule = f"source_stopped_{name.split(maxsplit=1)[0]}"
                    entity = f"{node}/node"
                    found.append(
                        _finding(rule, "monitor_fault", entity, "warning", newest_ns, now_ns, sentence)
                    )
        return found

    def _count_short(self, snapshot: Snapshot, driver: DriverState) -> list[Finding]:
        """Fewer GPUs answer than the node has had, and no event or inventory names which."""
        seen, expected = snapshot.latest("node_gpus_seen"), snapshot.latest("node_gpus_expected")
        has = dict(zip(expected.entities, expected.values.tolist(), strict=True))
        found, short = [], {}
        for entity, value, age_s in zip(
            seen.entities, seen.values.tolist(), seen.age_s.tolist(), strict=True
        ):
            missing, node = has.get(entity, float("nan")) - value, node_of(entity)
            if not (missing >= 1 and age_s <= self._bounds.count_short_s) or driver.troubled(node):
                continue
            named = sum(lost.startswith(f"{node}/gpu:") for lost in driver.lost)
            since_ns = short[entity] = self._short_since.get(entity, snapshot.now_ns)
            if missing > named and snapshot.now_ns - since_ns >= self._bounds.count_short_s * _SECOND:
                sentence = f"{value:.0f} GPUs answer, the node has had {value + missing:.0f}"
                found.append(
                    _finding("gpu_count", "gpu_lost", entity, "critical", since_ns, snapshot.now_ns, sentence)
                )
        self._short_since = short
        return found


class Frozen:
    """Power draw is read in milliwatts and never stands still on a GPU that works."""

    def __init__(self, bounds: StructuralBounds) -> None:
        self._bounds = bounds
        self._joins = Joins()
        self._state = SeriesState(
            value=("f8", np.nan, ()), moved_ns=("i8", 0, ()), longest_ns=("i8", 0, ()), moves=("i8", 0, ())
        )

    def findings(self, snapshot: Snapshot) -> list[Finding]:
        """Return GPUs under load whose power has not moved for long beyond their own past."""
        bounds, state = self._bounds, self._state
        power = read(snapshot.latest("gpu_power_watts"), snapshot.now_ns, bounds.fresh_s)
        state.align(power.entities)
        still_ns = self._still(power)
        bound_ns = np.maximum(bounds.frozen_s * _SECOND, bounds.frozen_factor * state["longest_ns"])
        frozen = power.known & (state["moves"] >= bounds.frozen_changes_min) & (still_ns >= bound_ns)
        if not frozen.any():
            return []
        load = read(snapshot.latest("gpu_utilization_ratio"), snapshot.now_ns, bounds.fresh_s)
        rows = self._joins.rows(("power", "load"), power.entities, load.entities)
        busy = take(np.where(load.known, load.values, 0.0), rows, 0.0) >= bounds.frozen_load_min
        found = []
        for row in np.flatnonzero(frozen & busy):
            seconds, since_ns = float(still_ns[row]) / _SECOND, int(state["moved_ns"][row])
            before = float(state["longest_ns"][row]) / _SECOND
            sentence = (
                f"power reads {power.values[row]:.2f} W, unmoved for {seconds:.0f} s under load; it never "
                f"stood still longer than {before:.0f} s: the driver's readings are frozen"
            )
            found.append(_finding("frozen", "driver_hang", power.entities[row], "warning", since_ns,
                                  snapshot.now_ns, sentence))  # fmt: skip
        return found

    def _still(self, power: Reading) -> np.ndarray:
        """How long each value has stood still, int64 [S]; learns moves and the longest standstill."""
        state = self._state
        moved = power.known & (power.values != state["value"])
        ran = moved & (state["moved_ns"] > 0)
        run_ns = power.time_ns - state["moved_ns"]
        state["longest_ns"][ran] = np.maximum(state["longest_ns"], run_ns)[ran]
        state["moves"][ran] += 1
        state["value"][moved] = power.values[moved]
        state["moved_ns"][moved] = power.time_ns[moved]
        return np.where(power.known & (state["moved_ns"] > 0), power.time_ns - state["moved_ns"], 0)


def _finding(
    rule: str, fault_class: str, entity: str, severity: Severity, since_ns: int, now_ns: int, sentence: str
) -> Finding:
    evidence = Evidence(observed=(now_ns - since_ns) / _SECOND, unit="seconds", since_ns=since_ns)
    return Finding(
        detector="structural", rule=rule, entity=entity, fault_class=fault_class, severity=severity,
        start_ns=since_ns, end_ns=now_ns, sentence=sentence, origin="driver", evidence=evidence,
    )  # fmt: skip
