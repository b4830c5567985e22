"""One tick's view with every newest value read once, however many rules ask for it."""

from __future__ import annotations

from gpuvigil_detectors.base import Latest, Snapshot, Window


class Cached:
    """A Snapshot that remembers what `latest` gave; it lives for one tick."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.now_ns = snapshot.now_ns
        self.events = snapshot.events
        self.steps = snapshot.steps
        self.nodes = snapshot.nodes
        self._latest: dict[str, Latest] = {}

    def window(self, metric: str, seconds: int) -> Window:
        """As the snapshot's own."""
        return self._snapshot.window(metric, seconds)

    def latest(self, metric: str) -> Latest:
        """As the snapshot's own, read once."""
        if metric not in self._latest:
            self._latest[metric] = self._snapshot.latest(metric)
        return self._latest[metric]
