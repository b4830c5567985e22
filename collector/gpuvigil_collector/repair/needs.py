"""What the hands of repair need: an executor, somebody who asks jobs to save, and the scene of the tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from gpuvigil_collector.action import Action, FleetState, Kind
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.walk import Word


class Executor(Protocol):
    """Has effects (execute.py). kinds: those that an actuator is configured for."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it can do here."""
        ...

    def submit(self, action: Action) -> None:
        """Take one action that was allowed; it is carried out in another thread."""
        ...

    def results(self) -> list[Action]:
        """Return the actions that have ended since the last call."""
        ...


class Saves(Protocol):
    """Asks jobs for checkpoints, once for each incident (repair/saving.py)."""

    def begin(self, job: str, by: str) -> None:
        """Ask a job for an incident."""
        ...

    def stands(self, job: str, by: str) -> Word:
        """Say how that goes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenery:
    """What one tick hands over: the time, the open incidents, the fleet."""

    now_ns: int
    open: Mapping[str, Incident]
    state: FleetState


NOTHING: Final = Scenery(now_ns=0, open={}, state=FleetState(mode=None))
