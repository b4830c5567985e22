"""Structural facts: what vanished, froze, hangs or fell silent. They need no statistics and come first.

Blind spot: a source that goes on sending plausible numbers that are wrong.
"""

from __future__ import annotations

from gpuvigil_detectors import catalogue
from gpuvigil_detectors.base import FactEvent, Finding, NodeFact, Snapshot
from gpuvigil_detectors.cached import Cached
from gpuvigil_detectors.driver_state import DriverState
from gpuvigil_detectors.silence import Silence
from gpuvigil_detectors.skew import Skew
from gpuvigil_detectors.stopped import Frozen, Stopped
from gpuvigil_detectors.vanished import Vanished


class Structural:
    """Judges the shape of what arrives: events of the driver's keeper, inventories, ages, standstill."""

    name = "structural"

    def __init__(self, bounds: catalogue.StructuralBounds | None = None) -> None:
        given = bounds if bounds is not None else catalogue.load("structural", catalogue.StructuralBounds)
        self._driver = DriverState(given)
        self._drills = DriverState(given)  # what injected events say: it touches no real fact, and none it
        self._known: set[str] = set()
        self._silence = Silence(given)
        self._stopped = Stopped(given)
        self._frozen = Frozen(given)
        self._vanished = Vanished(given)
        self._skew = Skew(given)

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Return everything that holds now."""
        snapshot = Cached(snapshot)
        for event in snapshot.events:
            if not event.judged or _of_this_boot(event, snapshot.nodes):
                (self._drills if event.synthetic else self._driver).take(event, snapshot.now_ns)
        for node in self._known - snapshot.nodes.keys():  # decommissioned
            self._driver.forget(node)
            self._drills.forget(node)
        self._known = set(snapshot.nodes)
        self._driver.inventory(snapshot.nodes, snapshot.now_ns)
        gpus = self._stopped.gpus
        gpus.update(snapshot)
        found = []
        for state in (self._driver, self._drills):
            state.readings(gpus.of_entities([*state.lost, *state.stuck]))
            found += state.findings(snapshot.now_ns)
        found += self._silence.findings(snapshot.nodes, snapshot.now_ns)
        found += self._stopped.findings(snapshot, self._driver)
        found += self._vanished.findings(snapshot) + self._skew.findings(snapshot.nodes, snapshot.now_ns)
        return found + self._frozen.findings(snapshot)


def _of_this_boot(event: FactEvent, nodes: dict[str, NodeFact]) -> bool:
    """A new boot, and a new agent too, knows nothing of old driver troubles: it tells its own."""
    fact = nodes.get(event.node)
    return fact is not None and fact.boot_id == event.boot_id
