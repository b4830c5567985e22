"""What the hands of repair need: an executor, somebody who asks jobs to save, and the scene of the tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from gpuvigil_collector.action import Action, FleetState, Kind
from gpuvigil_collector.action_store import Told
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.walk import Word


class Executor(Protocol):
    """Has effects (execute.py). kinds: those that an actuator is configured for."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it can do here."""
        ...

    def submit(self, action: Action) -> Action:
        """Take one action that was allowed, write it down, have it carried out in another thread."""
        ...

    def settle(self, action_id: str, state: Literal["done", "failed"], outcome: str) -> Action:
        """End an action that stays ambiguous by a person's word. Raises KeyError where it is not."""
        ...

    def results(self) -> list[Told]:
        """Return the transitions that were not told yet, oldest first."""
        ...

    def told(self, sequence: int) -> None:
        """Forget the transitions up to this one."""
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
    """What one tick hands over: the time, the open incidents, the fleet.

    scheduled: the jobs that the scheduler runs and can move; None where there is none: then all can be.
    journal_has_all: what was noted before is on disk. scheduler_ns: when the scheduler was read, 0: there is
    none.
    """

    now_ns: int
    open: Mapping[str, Incident]
    state: FleetState
    scheduled: frozenset[str] | None = None
    journal_has_all: bool = True
    scheduler_ns: int = 0


NOTHING: Final = Scenery(now_ns=0, open={}, state=FleetState(mode=None))
