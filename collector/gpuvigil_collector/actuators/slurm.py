"""Repair on Slurm: drain a node, give it back, move a job, stop a job.

Changed by `scontrol` and `scancel`, programs with a deadline; looked at by `sinfo` and `squeue`. Slurm has no
compare-and-set: each change follows a look of its own by milliseconds and is followed by another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from gpuvigil_collector import process
from gpuvigil_collector.action import Action, Fence, Kind, Look, RefusedError
from gpuvigil_collector.actuators import slurm_verdicts
from gpuvigil_collector.actuators.slurm_jobs import JobHands
from gpuvigil_collector.actuators.slurm_nodes import NodeHands
from gpuvigil_collector.actuators.slurm_send import Turn
from gpuvigil_collector.actuators.slurm_verdicts import Verdicts
from gpuvigil_collector.actuators.tools import Tools, names
from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.settings import SlurmSettings

KINDS: Final[frozenset[Kind]] = frozenset({"hold", "release", "move_job", "stop_job"})
_LOOK_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class SlurmActuator:
    """An `Actuator` over one Slurm cluster. clock: ns since the epoch, for the lease.

    A command whose answer was lost may lie in the queue of a slurmctld that stands, and have its effect once
    that goes on: the executor believes looks that then say absent only after a while (`arrives_s`).
    """

    settings: SlurmSettings
    client: SlurmClient
    clock: Callable[[], int] = time.time_ns
    verdicts: Verdicts | None = None
    name: str = "slurm"
    kinds: frozenset[Kind] = KINDS
    _nodes: NodeHands = field(init=False)
    _jobs: JobHands = field(init=False)

    def __post_init__(self) -> None:
        self._nodes = NodeHands(self.client)
        self._jobs = JobHands(self.client, self.settings)

    @property
    def arrives_s(self) -> float:
        """Twice what one change may last, and a minute at least: slurmctld may hold it back for others."""
        return max(60.0, 2 * float(self.settings.call))

    def look(self, action: Action) -> Look:
        """Say whether the action's effect is in place. Never raises: unknown instead."""
        try:
            names(action)
            return self._hands(action).look(action, min(_LOOK_S, self.settings.deadline))
        except (UnknownError, RefusedError) as error:
            return Look(state="unknown", detail=str(error))

    def apply(self, action: Action, fence: Fence) -> str:
        """Have the effect, once. Raises RefusedError or AmbiguousError."""
        names(action)
        if self.verdicts is None or action.proposal.kind != "release":
            return self._apply(action, fence)
        self.verdicts.take_back(action.proposal.node, fence)
        try:
            return self._apply(action, fence)
        except RefusedError:
            self.verdicts.allow(action.proposal.node)  # it stays held
            raise

    def _apply(self, action: Action, fence: Fence) -> str:
        most_s = min(self.settings.call, action.proposal.deadline_s)
        turn = Turn.of(process.within(fence, most_s, self.clock()))
        try:
            asked = replace(
                action, proposal=self._nodes.in_slurms_words(action.proposal, fence, turn.left_s())
            )
            return self._hands(asked).apply(asked, fence, turn)
        except UnknownError as error:
            raise RefusedError(f"nothing was sent: {error}") from error

    def tend(self, fence: Fence) -> None:
        """Keep the verdicts of held nodes, where the site wants them."""
        if self.verdicts is not None:
            self.verdicts.tend(fence)

    def _hands(self, action: Action) -> NodeHands | JobHands:
        if action.proposal.kind not in self.kinds:
            raise RefusedError(
                f"slurm: expected one of {', '.join(sorted(KINDS))}, got {action.proposal.kind}"
            )
        return self._nodes if action.proposal.kind in ("hold", "release") else self._jobs


def make(tools: Tools) -> Iterator[SlurmActuator]:
    """One where Slurm starts the work on the nodes."""
    if tools.slurm is not None:
        client = SlurmClient(folder=tools.slurm.folder)
        verdicts = slurm_verdicts.make(tools, tools.slurm, client)
        yield SlurmActuator(settings=tools.slurm, client=client, clock=tools.now_ns, verdicts=verdicts)
