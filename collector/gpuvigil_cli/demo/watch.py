"""Follows truth and incidents while the demo runs, and says each thing once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpuvigil_cli.client import Client, Json
from gpuvigil_cli.demo.layout import Layout, truth_file
from gpuvigil_cli.demo.match import Fault, Outcome, Verdict, join, load_limits, parse_truth
from gpuvigil_cli.demo.screen import Screen


class Watch:
    """What was broken and what was found, so far."""

    def __init__(
        self, place: Layout, nodes: list[str], client: Client, screen: Screen, more: Iterable[Path] = ()
    ) -> None:
        """`more` are truth files beside those of the simulated nodes."""
        self.faults: list[Fault] = []
        self.outcome = Outcome(verdicts=(), false_alarms=())
        self._files = [*(truth_file(place, node) for node in nodes), *more]
        self._client = client
        self._screen = screen
        self._limit = load_limits()
        self._said: set[str] = set()

    def look(self) -> None:
        """Read truth, then incidents, judge, and print what is new. Raises CliError."""
        # incidents first: a fault that is set between the two reads must not turn its incident into an alarm
        incidents = self._client.items("/api/v1/incidents", state="all")
        faults = self._truth()
        for fault in faults[len(self.faults) :]:
            self._screen.fault_set(fault, self._limit(fault.fault_class) / 1e9)
        self.faults = faults
        self.outcome = join(faults, incidents, self._limit)
        for verdict in self.outcome.verdicts:
            if verdict.correct and verdict.incident and self._is_new("found", verdict.incident):
                self._screen.found(verdict)
        for row in self.outcome.false_alarms:
            if self._is_new("alarm", row):
                self._screen.unmatched(row)

    def judged_ns(self) -> int:
        """Return when the last verdict stood or stands: found, or the limit of its class is over."""
        return max((self._stands_ns(verdict) for verdict in self.outcome.verdicts), default=0)

    def summary(self, planned: int, last_in_s: float) -> str:
        """Say in one line how far it is."""
        found = sum(verdict.correct and verdict.incident is not None for verdict in self.outcome.verdicts)
        coming = f", last onset in {last_in_s:.0f} s" if last_in_s > 0 else ""
        alarms = len(self.outcome.false_alarms)
        return f"{len(self.faults)} of {planned} faults set{coming}, {found} found, {alarms} unmatched alarms"

    def _truth(self) -> list[Fault]:
        """Return all faults in the order in which they were first seen: known ones keep their place."""
        known = set(self.faults)
        read = [fault for path in self._files for fault in _read(path)]
        fresh = sorted((fault for fault in read if fault not in known), key=lambda fault: fault.injected_ns)
        return self.faults + fresh

    def _stands_ns(self, verdict: Verdict) -> int:
        if verdict.correct and verdict.incident is not None:
            opened: int = verdict.incident["opened_ns"]
            return opened
        return verdict.fault.injected_ns + self._limit(verdict.fault.fault_class)

    def _is_new(self, what: str, row: Json) -> bool:
        """Tell whether this was not said yet; an incident may refine its target, and match only then."""
        name = f"{what} {row.get('id')}"
        fresh = name not in self._said
        self._said.add(name)
        return fresh


def _read(path: Path) -> list[Fault]:
    """Return the faults of one truth file; a line that is still being written has no end yet."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    return [parse_truth(line, path.name) for line in lines if line.strip()]
